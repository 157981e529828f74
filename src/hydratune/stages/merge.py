"""Merge the adapter into a plain transformers folder, onto the base that it was trained against."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.build.as_loaded import AsLoaded
from hydratune.build.blueprint import of_saved
from hydratune.build.dequantize import dequantizer
from hydratune.build.endings import end_answers
from hydratune.build.hardware import Hardware
from hydratune.build.merging import Adapter, merge
from hydratune.build.source import model_source, snapshot
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, ConfigError, RunError
from hydratune.run.console import say
from hydratune.run.layout import RunDir, write_json
from hydratune.run.receipt import read
from hydratune.run.table import certificate_text

CARRIED = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")  # of a model's folder, beside its weights
VERIFIED_ROWS, VERIFIED_TOKENS = 8, 512
EXACT = 1e-4  # greatest KL beyond the rounding to the folder's type, and of a float32 folder altogether
ROUNDED = 2e-2  # greatest KL altogether of a 16-bit folder, or of one on another base than that of training
PROMPTS = Path(__file__).resolve().parents[1] / "demo" / "test.jsonl"  # no run trains on them


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Writes merged/, whole or not at all, and merge_report.json. Metrics: those of the certificate."""
    conf = config.merge
    source = model_source(config.model, cache_dir(config))
    # as the model was loaded for training, which may have been on another machine
    loaded = ((read(run, "train") or {}).get("hardware") or {}).get("dtype", hardware.dtype)
    hardware = replace(hardware, dtype=loaded)
    for cut_off in run.root.glob(".merged.*"):  # by a merge that was killed
        shutil.rmtree(cut_off)
    (run.root / "merge_report.json").unlink(missing_ok=True)
    quantized = config.quantization.kind != "none"
    bases = [conf.base]
    if conf.base == "auto" or (conf.base == "measure" and not quantized):
        bases = ["dequantized" if quantized else "original"]
    elif conf.base == "measure":
        bases = ["dequantized", "original"]
    reports: dict[str, dict[str, Any]] = {}
    try:
        for base in bases:
            say(f"  onto the {base} base")
            building = _building(run, base)
            building.mkdir()
            merge_one = _merge_with_peft if conf.method == "peft" else _merge_in_a_stream
            merge_one(config, run, hardware, source, base, building)
            _carry(_base_files(config, source), run.adapter, building)
            end_answers(building, _seen(run).get("stop"))
            if conf.verify:
                reports[base] = _verify(config, run, hardware, source, base, building)
        chosen = min(bases, key=lambda base: reports.get(base, {}).get("merge/kl", 0.0))
        report: dict[str, Any] = {"merge/base": chosen, **reports.get(chosen, {})}
        if conf.verify:
            _accept(config, run, report, reports)
        _put_on_disk(_building(run, chosen))
        if run.merged.is_dir():  # renamed, for a removal that is killed would leave half of it
            run.merged.rename(run.root / ".merged.before")
        _building(run, chosen).rename(run.merged)
    finally:
        for left in run.root.glob(".merged.*"):
            shutil.rmtree(left)
    return {name: value for name, value in report.items() if isinstance(value, int | float)}


def _building(run: RunDir, base: str) -> Path:
    """Where a merged model is until it is verified: what a killed merge leaves says that it isn't."""
    return run.root / f".merged.{base}.unverified"


def _base_files(config: Config, source: str) -> Path:
    return snapshot(source, config.model.revision, config.model.extra.get("token"))


def _merge_in_a_stream(config: Config, run: RunDir, hardware: Hardware, source: str, base: str, out: Path) -> None:
    dtype = None if config.merge.dtype == "auto" else getattr(torch, config.merge.dtype)
    modules: list[str] = []
    if base == "dequantized":
        modules = json.loads(run.quantized.read_text(encoding="utf-8"))["modules"]
    quantized = dequantizer(config.quantization, hardware.dtype) if modules else None

    def values(weight: Tensor) -> Tensor:
        """Quantized where training did it: on another device, constants may be rounded differently."""
        assert quantized
        return quantized(weight.to(hardware.device)).cpu()

    trust, seen = config.model.trust_remote_code, _seen(run)
    known = of_saved(seen["blueprint"]) if seen else None
    loaded = getattr(torch, hardware.dtype)
    folder = AsLoaded(_base_files(config, source), trust, loaded, known, seen.get("float32"))
    merge(folder, Adapter(run.adapter), out, dtype, dict.fromkeys(modules, values))


def _merge_with_peft(config: Config, run: RunDir, hardware: Hardware, source: str, base: str, out: Path) -> None:
    from hydratune.build.peft_merge import merge_with_peft

    merge_with_peft(config, hardware, source, run.adapter, base == "dequantized", out)


def _carry(base: Path, adapter: Path, out: Path) -> None:
    """The other files of a model's folder: the base's, then the tokenizer that training used."""
    written = {path.relative_to(out) for path in out.rglob("*")}
    for folder, left_out in ((base, written), (adapter, {Path("adapter_config.json")})):
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            weights = path.name.endswith((".safetensors.index.json", ".bin.index.json"))
            hidden = any(part.startswith(".") for part in name.parts)
            if path.suffix in CARRIED and path.is_file() and name not in left_out and not weights and not hidden:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, out / name)


def _seen(run: RunDir) -> dict[str, Any]:
    """What training saw of the model, which spares the libraries' imports; empty where it left nothing."""
    return dict(json.loads(run.model.read_text(encoding="utf-8"))) if run.model.is_file() else {}


def _put_on_disk(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _verify(config: Config, run: RunDir, hardware: Hardware, source: str, base: str, merged: Path) -> dict[str, Any]:
    from hydratune.build.certificate import certify
    from hydratune.build.model import load_tokenizer

    tokenizer = load_tokenizer(config.model, source)
    rows, measured_on = _held_out(config, run, tokenizer)
    certificate = certify(config, hardware, source, run.adapter, merged, rows, tokenizer, base)
    report = certificate.as_metrics() | {"merge/measured_on": measured_on}
    say(f"  {certificate_text(report)}")
    return report


def _held_out(config: Config, run: RunDir, tokenizer: Any) -> tuple[list[list[int]], str]:
    """Rows of token ids that were not trained on, and what they are."""
    from hydratune.build.tokens import open_tokens

    data = config.data
    if data.validation_path or data.validation_split or data.validation_share:
        try:
            tokens = open_tokens(run.prepared, data, tokenizer, config.trainer.max_length, cache_dir(config))
        except (ConfigError, RunError):
            tokens = None  # the rows have changed since, or are gone
        if tokens and tokens.validation is not None and len(tokens.validation):
            rows = tokens.validation[:VERIFIED_ROWS]["input_ids"]
            return [ids[:VERIFIED_TOKENS] for ids in rows], "validation rows"
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()[:VERIFIED_ROWS]
    texts = [tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False) for line in lines]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], "prompts shipped with hydratune"


def _accept(config: Config, run: RunDir, report: dict[str, Any], reports: dict[str, dict[str, Any]]) -> None:
    """Write merge_report.json. Raises RunError where the merged model is not the one that was trained."""
    stored = json.loads((_building(run, report["merge/base"]) / "config.json").read_text(encoding="utf-8"))
    in_float32 = "float32" in (stored.get("dtype"), stored.get("torch_dtype"))
    # the original weights of a quantized base are others by design
    same_base = config.quantization.kind == "none" or report["merge/base"] == "dequantized"
    rounds_inputs = config.quantization.kind == "int8"  # which no merged model does
    tolerance = config.merge.tolerance or (EXACT if in_float32 and same_base and not rounds_inputs else ROUNDED)
    kls = {base: found["merge/kl"] for base, found in reports.items()}
    write_json(run.root / "merge_report.json", {**report, "tolerance": tolerance, "kl_by_base": kls})
    kl, beyond, wrong = report["merge/kl"], report["merge/kl_beyond_rounding"], report["merge/wrong_weights"]
    same = report["merge/same_greedy_beyond_rounding"]
    if wrong or not beyond <= EXACT or same < 1:
        raise RunError(
            f"The merged model is not the one that was trained: {wrong} weights are others, KL {beyond:.2g} and "
            f"{1 - same:.1%} other likeliest tokens beyond rounding, and most differs {report['merge/most_different_weight']}, "
            f"by {report['merge/max_weight_difference']:.1e} of its size: set merge.method=peft."
        )
    if not kl <= tolerance:
        advice = "merge.dtype=float32" if same_base and not in_float32 else f"merge.tolerance={2 * kl:.1g}"
        if not same_base:
            advice = "merge.base=dequantized"
        raise RunError(
            f"The merged model is not close enough to the one that was trained: KL {kl:.2g}, above {tolerance} "
            f"(merge.tolerance): set {advice}."
        )
    checks = {
        "same_prompt_tokens": "its tokenizer makes other tokens of a prompt",
        "answers_end": "its generation_config.json doesn't name the token that ends a turn",
        "vocabulary_fits": "its embedding has fewer rows than its tokenizer has tokens",
        "tied_as_configured": "its head and embedding are not tied as its config.json says",
    }
    for name, said in checks.items():
        if not report[f"merge/{name}"]:
            raise RunError(f"The merged folder can't be served as it was trained: {said}.")
