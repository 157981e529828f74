"""conf/quantization -> transformers.BitsAndBytesConfig."""

from typing import Any

import torch
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
