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
from hydratune.build.data import open_tokens
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
    settings = AutoConfig.from_pretrained(
        source, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
    )
    stored = settings.dtype or torch.float32
    if base == "dequantized":
        quantized = load_model(config.model, source, hardware, config.quantization)
        _put_dequantized(plain, quantized)
        del quantized
    merged = PeftModel.from_pretrained(plain, str(run.adapter)).merge_and_unload()
    dtype = stored if config.merge.dtype == "auto" else getattr(torch, config.merge.dtype)
    for cut_off in run.root.glob(".merged.*"):  # by a merge that was killed
        shutil.rmtree(cut_off)
    building = run.root / f".merged.{os.getpid()}"
    merged.to(dtype).save_pretrained(building)
    load_tokenizer(config.model, source).save_pretrained(building)
    metrics = _verify(config, run, hardware, source, str(building)) if config.merge.verify else {}
    shutil.rmtree(run.merged, ignore_errors=True)
    building.rename(run.merged)
    return metrics


@torch.no_grad()
def _verify(config: Config, run: RunDir, hardware: Hardware, source: str, merged: str) -> dict[str, Any]:
    """Adapter model against the merged folder loaded afresh, on 8 training rows, in float32.

    Metrics: mean KL divergence in nats and the greatest logit difference. Raises RunError over the tolerance.
    """
    tokenizer = load_tokenizer(config.model, source)
    rows = open_tokens(run.prepared, config.data, tokenizer, config.trainer.max_length, cache_dir(config))
    exact = replace(hardware, dtype="float32", compute_dtype="float32")
    trained = adapter_model(config, run.adapter, exact, source)
    fresh = load_plain(merged, torch.float32, trained.device)
    divergences, differences = [], []
    for ids in rows["input_ids"][:8]:
        batch = torch.tensor([ids], device=trained.device)
        a, b = trained(batch).logits.double(), fresh(batch).logits.double()
        differences.append((a - b).abs().max().item())
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1).mean().item())
    kl, difference = sum(divergences) / len(divergences), max(differences)
    stored = AutoConfig.from_pretrained(merged).dtype
    tolerance = config.merge.tolerance or (1e-3 if stored == torch.float32 else 2e-2)
    report = {"merge/kl": kl, "merge/max_logit_difference": difference}
    write_json(run.root / "merge_report.json", {**report, "tolerance": tolerance, "rows": len(divergences)})
    say(f"  against the trained model: KL {kl:.1e}, logits within {difference:.1e}")
    if not kl <= tolerance:
        raise RunError(
            f"The merged model is not the one that was trained: KL {kl:.2g} is over merge.tolerance={tolerance}. "
            "Start a run with merge.base=dequantized, or merge.dtype=float32."
        )
    return report
