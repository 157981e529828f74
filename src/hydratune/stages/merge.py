"""Merge the adapter into a plain transformers folder, onto the base that it was trained against."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from hydratune.build.dequantize import dequantizer
from hydratune.build.hardware import Hardware
from hydratune.build.merging import Adapter, merge
from hydratune.build.safetensors_folder import SafetensorsFolder
from hydratune.build.source import model_source, snapshot
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, RunError
from hydratune.run.console import say
from hydratune.run.layout import RunDir, write_json
from hydratune.run.receipt import read

CARRIED = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")  # of a model's folder, beside its weights
VERIFIED_ROWS = 8
WEIGHT_TOLERANCE = 1e-2  # of a weight's own size


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Writes merged/, whole or not at all, and merge_report.json. Metrics: those of the certificate."""
    conf = config.merge
    source = model_source(config.model, cache_dir(config))
    for cut_off in run.root.glob(".merged.*"):  # by a merge that was killed
        shutil.rmtree(cut_off)
    four_bit = config.quantization.kind in ("nf4", "fp4")
    bases = [conf.base]
    if conf.base == "auto" or (conf.base == "measure" and not four_bit):
        bases = ["dequantized" if four_bit else "original"]
    elif conf.base == "measure":
        bases = ["dequantized", "original"]
    reports: dict[str, dict[str, Any]] = {}
    try:
        for base in bases:
            say(f"  onto the {base} base")
            building = run.root / f".merged.{base}"
            building.mkdir()
            merge_one = _merge_with_peft if conf.method == "peft" else _merge_in_a_stream
            merge_one(config, run, hardware, source, base, building)
            _carry(snapshot(source, config.model.revision), run.adapter, building)
            if conf.verify:
                reports[base] = _verify(config, run, hardware, source, building)
        chosen = min(bases, key=lambda base: reports.get(base, {}).get("merge/kl", 0.0))
        report: dict[str, Any] = {"merge/base": chosen, **reports.get(chosen, {})}
        if conf.verify:
            _accept(config, run, report, reports)
        if run.merged.is_dir():  # renamed, for a removal that is killed would leave half of it
            run.merged.rename(run.root / ".merged.before")
        (run.root / f".merged.{chosen}").rename(run.merged)
    finally:
        for left in run.root.glob(".merged.*"):
            shutil.rmtree(left)
    return {name: value for name, value in report.items() if isinstance(value, int | float)}


def _merge_in_a_stream(config: Config, run: RunDir, hardware: Hardware, source: str, base: str, out: Path) -> None:
    dtype = None if config.merge.dtype == "auto" else getattr(torch, config.merge.dtype)
    modules: list[str] = []
    if base == "dequantized":
        modules = json.loads(run.quantized.read_text(encoding="utf-8"))["modules"]
    # as they were loaded for training, which may have been on another machine
    loaded = ((read(run, "train") or {}).get("hardware") or {}).get("dtype", hardware.dtype)
    values = dequantizer(config.quantization, loaded) if modules else None
    folder = SafetensorsFolder(snapshot(source, config.model.revision))
    merge(folder, Adapter(run.adapter), out, dtype, {name: values for name in modules if values})


def _merge_with_peft(config: Config, run: RunDir, hardware: Hardware, source: str, base: str, out: Path) -> None:
    from hydratune.build.peft_merge import merge_with_peft

    merge_with_peft(config, hardware, source, run.adapter, base == "dequantized", out)


def _carry(base: Path, adapter: Path, out: Path) -> None:
    """The other files of a model's folder: the base's, then the tokenizer that training used."""
    written = {path.name for path in out.iterdir()}
    for path in sorted(base.iterdir()):
        weights = path.name.endswith((".safetensors.index.json", ".bin.index.json"))
        if path.suffix in CARRIED and path.name not in written and not weights:
            shutil.copyfile(path, out / path.name)
    for path in sorted(adapter.iterdir()):
        if path.suffix in CARRIED and path.name != "adapter_config.json":
            shutil.copyfile(path, out / path.name)


def _verify(config: Config, run: RunDir, hardware: Hardware, source: str, merged: Path) -> dict[str, Any]:
    from hydratune.build.certificate import certify
    from hydratune.build.data import open_tokens
    from hydratune.build.model import load_tokenizer

    tokenizer = load_tokenizer(config.model, source)
    tokens = open_tokens(run.prepared, config.data, tokenizer, config.trainer.max_length, cache_dir(config))
    rows = tokens["input_ids"][-VERIFIED_ROWS:]
    certificate = certify(config, hardware, source, run.adapter, merged, rows, tokenizer)
    say(
        f"  against the trained model: KL {certificate.kl:.1e}, logits within {certificate.max_logit_difference:.1e}, "
        f"{certificate.same_greedy_tokens:.1%} of the likeliest tokens the same"
    )
    return certificate.as_metrics()


def _accept(config: Config, run: RunDir, report: dict[str, Any], reports: dict[str, dict[str, Any]]) -> None:
    """Write merge_report.json. Raises RunError where the merged model is not the one that was trained."""
    stored = json.loads((run.root / f".merged.{report['merge/base']}" / "config.json").read_text(encoding="utf-8"))
    exact = "float32" in (stored.get("dtype"), stored.get("torch_dtype"))
    tolerance = config.merge.tolerance or (1e-3 if exact else 2e-2)
    kls = {base: found["merge/kl"] for base, found in reports.items()}
    write_json(run.root / "merge_report.json", {**report, "tolerance": tolerance, "kl_by_base": kls})
    kl, apart = report["merge/kl"], report["merge/max_weight_difference"]
    # the original weights of a quantized base are others by design: there the KL alone decides
    same_base = config.quantization.kind == "none" or report["merge/base"] == "dequantized"
    if not kl <= tolerance or (same_base and not apart <= WEIGHT_TOLERANCE):
        raise RunError(
            f"The merged model is not the one that was trained: KL {kl:.2g} (merge.tolerance={tolerance}), and most "
            f"differs {report['merge/most_different_weight']}, by {apart:.1e} of its size. Set merge.base=dequantized "
            "or merge.dtype=float32, in another run_dir."
        )
    checks = {
        "same_prompt_tokens": "its tokenizer makes other tokens of a prompt",
        "vocabulary_fits": "its embedding has fewer rows than its tokenizer has tokens",
        "tied_as_configured": "its head and embedding are not tied as its config.json says",
    }
    for name, said in checks.items():
        if not report[f"merge/{name}"]:
            raise RunError(f"The merged folder can't be served as it was trained: {said}.")
