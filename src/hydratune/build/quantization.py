"""conf/quantization -> transformers.BitsAndBytesConfig."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import BitsAndBytesConfig

from hydratune.config.schema import QuantizationConf


def build_quantization(conf: QuantizationConf, compute_dtype: str) -> BitsAndBytesConfig | None:
    """None for kind=none; `compute_dtype` is the settled dtype of 4-bit layers' products."""
    if conf.kind == "none":
        return None
    shared: dict[str, Any] = {"llm_int8_skip_modules": conf.llm_int8_skip_modules, **conf.extra}
    if conf.kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=conf.llm_int8_threshold, **shared)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=conf.kind,
        bnb_4bit_use_double_quant=conf.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
        bnb_4bit_quant_storage=getattr(torch, conf.bnb_4bit_quant_storage),
        **shared,
    )


@contextmanager
def quick_on_cpu() -> Iterator[None]:
    """Inside, bitsandbytes makes the same 4-bit weights on a CPU in a quarter of the time.

    Its plain backend looks up each weight among the 15 bounds between the types' values by torch.bucketize, 22 ns a weight.
    """
    with patch.object(torch, "bucketize", _bucketize):
        yield


_by_torch = torch.bucketize
AT_ONCE = 2**16  # values, so that they stay in the CPU's cache


def _bucketize(values: Any, boundaries: Any, **options: Any) -> Tensor:
    """As torch's, by a comparison with each bound, 1.5 ns a value, where that is what is asked for."""
    asked = options == {"out_int32": True} and isinstance(values, Tensor) and isinstance(boundaries, Tensor)
    plain = asked and values.device.type == "cpu" and values.dtype == boundaries.dtype == torch.float32
    if not plain or boundaries.shape != (15,):
        return _by_torch(values, boundaries, **options)
    flat, bounds = values.detach().reshape(-1).numpy(), boundaries.numpy()
    found = np.empty(len(flat), np.int32)
    count, below = np.empty(AT_ONCE, np.uint8), np.empty(AT_ONCE, np.bool_)
    for first in range(0, len(flat), AT_ONCE):
        part = flat[first : first + AT_ONCE]
        many = count[: len(part)]
        many.fill(len(bounds))  # which is torch's answer for what is no number
        for bound in bounds:
            np.less_equal(part, bound, out=below[: len(part)])
            many -= below[: len(part)].view(np.uint8)
        found[first : first + AT_ONCE] = many
    return torch.from_numpy(found).view(values.shape)


def quantized_modules(model: torch.nn.Module) -> list[str]:
    """Names of the layers whose weights bitsandbytes holds in 4 or 8 bits."""
    import bitsandbytes as bnb

    return [
        name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
    ]


def keep_gradients_on_cpu(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights at the first no-grad forward.

    On CPUs with AVX512-BF16 it repacks them in place, and every later backward, dequantize or state_dict
    reads the packed bytes as if they were not: gradients point nowhere, and only a warning tells.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
