"""Merge the adapter into a plain transformers folder, onto the base that it was trained against."""

import os
import shutil
from dataclasses import replace
from typing import Any, cast

import bitsandbytes as bnb
import torch
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel

from hydratune.build.adapter import adapter_model
from hydratune.build.data import build_tokens, load_tokens
from hydratune.build.hardware import Hardware
from hydratune.build.model import load_model, load_plain, load_tokenizer, model_source
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, RunError
from hydratune.run.console import say
from hydratune.run.layout import RunDir, write_json


def _put_dequantized(plain: PreTrainedModel, quantized: PreTrainedModel) -> None:
    """Copy the values that the quantized layers stand for into `plain`."""
    target = dict(plain.named_modules())
    for name, module in quantized.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, cast(Any, module.weight).quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            raise RunError("merge.base=dequantized takes 4-bit bases: set merge.base=original for int8.")
        else:
            continue
        target[name].weight.data.copy_(weight)


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Writes merged/, whole or not at all. Metrics: KL divergence (nats) and greatest logit difference."""
    cache = cache_dir(config)
    source = model_source(config.model, cache)
    kind = config.quantization.kind
    base = config.merge.base
    if base == "auto":
        base = "dequantized" if kind in ("nf4", "fp4") else "original"
    say(f"  onto the {base} base")
    plain = load_model(config.model, source, replace(hardware, dtype="float32"))
    stored = AutoConfig.from_pretrained(source, revision=config.model.revision).dtype or torch.float32
    if base == "dequantized":
        quantized = load_model(config.model, source, hardware, config.quantization)
        _put_dequantized(plain, quantized)
        del quantized
    merged = PeftModel.from_pretrained(plain, str(run.adapter)).merge_and_unload()
    dtype = stored if config.merge.dtype == "auto" else getattr(torch, config.merge.dtype)
    metrics: dict[str, Any] = {}
    building = run.root / f".merged.{os.getpid()}"
    merged.to(dtype).save_pretrained(building)
    load_tokenizer(config.model, source).save_pretrained(building)
    if config.merge.verify:
        metrics = _verify(config, run, hardware, source, str(building))
    shutil.rmtree(run.merged, ignore_errors=True)
    building.rename(run.merged)
    return metrics


@torch.no_grad()
def _verify(config: Config, run: RunDir, hardware: Hardware, source: str, merged: str) -> dict[str, Any]:
    """Adapter model against the merged folder loaded afresh, on 8 training rows, in float32."""
    tokenizer = load_tokenizer(config.model, source)
    rows = load_tokens(build_tokens(config.data, tokenizer, config.trainer.max_length, cache_dir(config)))
    trained = adapter_model(config, run.adapter, hardware, source)
    fresh = load_plain(merged, torch.float32, trained.device)
    divergences, differences = [], []
    for ids in rows["input_ids"][:8]:
        batch = torch.tensor([ids], device=trained.device)
        a, b = trained(batch).logits.float(), fresh(batch).logits.float()
        differences.append((a - b).abs().max().item())
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1).mean().item())
    report = {"merge/kl": sum(divergences) / len(divergences), "merge/max_logit_difference": max(differences)}
    write_json(
        run.root / "merge_report.json",
        {**report, "tolerance": config.merge.tolerance, "rows": len(differences)},
    )
    say(
        f"  against the trained model: KL {report['merge/kl']:.1e}, logits within {report['merge/max_logit_difference']:.1e}"
    )
    if report["merge/kl"] > config.merge.tolerance:
        raise RunError(
            f"The merged model is not the one that was trained: KL {report['merge/kl']:.2g} is over merge.tolerance="
            f"{config.merge.tolerance}. Set merge.base=dequantized, or merge.dtype=float32."
        )
    return report
