"""The merge through peft itself, which loads the whole model: for what can't be merged tensor by tensor."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import bitsandbytes as bnb
import torch
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel

from hydratune.build.hardware import Hardware
from hydratune.build.model import load_model
from hydratune.config.schema import Config


def merge_with_peft(
    config: Config, hardware: Hardware, source: str, adapter: Path, dequantized: bool, out: Path
) -> None:
    """Write the merged model and its configuration into `out`, computed in float32."""
    plain = load_model(config.model, source, replace(hardware, dtype="float32"))
    settings = AutoConfig.from_pretrained(
        source, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
    )
    if dequantized:
        quantized = load_model(config.model, source, hardware, config.quantization)
        _put_dequantized(plain, quantized)
        del quantized
    merged = PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload()
    dtype = settings.dtype or torch.float32
    if config.merge.dtype != "auto":
        dtype = getattr(torch, config.merge.dtype)
    merged.to(dtype).save_pretrained(out)


def _put_dequantized(plain: PreTrainedModel, quantized: PreTrainedModel) -> None:
    """Copy the values that the quantized layers stand for into `plain`."""
    target = dict(plain.named_modules())
    for name, module in quantized.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, cast(Any, module.weight).quant_state)
            target[name].weight.data.copy_(weight)
