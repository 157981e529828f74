"""The merge through peft itself, which loads the whole model: for what can't be merged tensor by tensor."""

from pathlib import Path
from typing import Any, cast

import bitsandbytes as bnb
import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hydratune.build.adapter import resized_rows, with_adapter
from hydratune.build.blueprint import Blueprint, blueprint_of
from hydratune.build.hardware import Hardware
from hydratune.build.mergeable import not_by_peft, of_embeddings, unmergeable
from hydratune.build.merging import Adapter
from hydratune.build.model import load_model
from hydratune.build.safetensors_folder import stored_quantized
from hydratune.config.schema import Config, RunError


def merge_with_peft(
    config: Config, hardware: Hardware, source: str, adapter: Path, dequantized: bool, out: Path
) -> None:
    """Write the merged model and its configuration into `out`, computed in float32.

    Raises RunError where peft's merge would not be the model that was trained.
    """
    settings = AutoConfig.from_pretrained(
        source, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
    )
    if getattr(settings, "quantization_config", None):
        raise RunError(stored_quantized(source))
    plain: Any = load_model(config.model, source, hardware)  # rounded as training had it
    plain = plain.float()
    described, known = Adapter(adapter), blueprint_of(plain)
    resized = bool(resized_rows(plain, adapter) or config.model.add_tokens)
    refused = unmergeable(described, known.parameters) or not_by_peft(described, known, resized)
    if refused:
        raise RunError(refused)
    if dequantized:
        quantized = load_model(config.model, source, hardware, config.quantization)
        put_dequantized(plain, quantized)
        del quantized
    _untie(plain, described, known)
    merged = with_adapter(plain, adapter).merge_and_unload()
    dtype = settings.dtype or torch.float32
    if config.merge.dtype != "auto":
        dtype = getattr(torch, config.merge.dtype)
    merged.to(dtype).save_pretrained(out)


def _untie(plain: Any, adapter: Adapter, known: Blueprint) -> None:
    """Where the adapter changes one of embedding and head, which are one tensor: peft's merge would change both.

    Not where peft trained them together: rows, and ensure_weight_tying.
    """
    together = adapter.config.get("ensure_weight_tying")
    if not known.tied or together or all(".token_adapter." in name for name in of_embeddings(adapter, known)):
        return
    head = plain.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    plain.all_tied_weights_keys.pop(known.head, None)
    for settings in (plain.config, plain.config.get_text_config()):
        settings.tie_word_embeddings = False


def put_dequantized(plain: PreTrainedModel, quantized: PreTrainedModel) -> None:
    """Copy the values that the quantized layers stand for into `plain`."""
    target = dict(plain.named_modules())
    for name, module in quantized.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            values = bnb.functional.dequantize_4bit(module.weight.data, cast(Any, module.weight).quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            values = bnb.functional.int8_vectorwise_dequant(module.weight.data, cast(Any, module.weight).SCB)
        else:
            continue
        # bitsandbytes' layers are (out, in), whatever they replace
        target[name].weight.data.copy_(values.T if isinstance(target[name], Conv1D) else values)
