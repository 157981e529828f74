"""What the quantized form of a base weight stands for, tensor by tensor, as bitsandbytes quantized it for training."""

from collections.abc import Callable

import torch
from torch import Tensor

from hydratune.config.schema import QuantizationConf


def dequantizer(conf: QuantizationConf, dtype: str) -> Callable[[Tensor], Tensor]:
    """A weight as it is stored, shape (out, in) -> its values after quantization; `dtype`: that of the loaded model.

    NF4 and FP4 in blocks of 64 with absmax constants (QLoRA, arXiv:2305.14314), in `dtype`; int8 row by row
    (LLM.int8(), arXiv:2208.07339), in float32.
    """
    from bitsandbytes.functional import (
        dequantize_4bit,
        int8_vectorwise_dequant,
        int8_vectorwise_quant,
        quantize_4bit,
    )

    def four_bits(weight: Tensor) -> Tensor:
        loaded = weight.to(getattr(torch, dtype)).contiguous()
        packed, state = quantize_4bit(
            loaded,
            blocksize=64,
            compress_statistics=conf.bnb_4bit_use_double_quant,
            quant_type=conf.kind,
            quant_storage=getattr(torch, conf.bnb_4bit_quant_storage),
        )
        values: Tensor = dequantize_4bit(packed, state)
        return values

    def eight_bits(weight: Tensor) -> Tensor:
        loaded = weight.to(getattr(torch, dtype)).contiguous().to(torch.float16)  # as bitsandbytes does
        values: Tensor = int8_vectorwise_dequant(*int8_vectorwise_quant(loaded)[:2])
        return values

    return eight_bits if conf.kind == "int8" else four_bits
