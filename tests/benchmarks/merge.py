"""Merging an r=64 adapter into TinyLlama's shape, beside plain_merge.py and beside `cp -r` of the checkpoint."""

import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.benchmarks.measure import HYDRATUNE, Sample, in_turn, rows, run
from tests.benchmarks.shapes import checkpoint, trained_run

SCRIPT = Path(__file__).with_name("plain_merge.py")
REPETITIONS = 3
LAYERS = 22
QUANTITIES = ["wall", "cpu", "anon"]


def table(work: Path) -> list[str]:
    """Rows of the table, and lines that say whether both wrote the same, and what a model of twice the layers takes."""
    found, notes = [], []
    model = checkpoint(work / "model", LAYERS)
    for kind in ("none", "nf4"):
        folder, plain = trained_run(work / f"merge-{kind}", model, kind, LAYERS), work / f"plain-merge-{kind}"
        script = [sys.executable, str(SCRIPT), str(model), str(folder / "adapter"), str(plain)]
        script += ["--nf4"] if kind == "nf4" else []

        def ours(_: int, folder: Path = folder) -> Sample:
            return _merge(folder, work)

        def other(_: int, plain: Path = plain, script: list[str] = script) -> Sample:
            shutil.rmtree(plain, ignore_errors=True)
            return run(script, work)

        pairs = in_turn(ours, other, 1 if kind == "nf4" else REPETITIONS)
        found += rows(f"merge, {kind}, 1.1 B", "transformers, peft", pairs, QUANTITIES)
        notes.append(f"merge, {kind}: the weights of both are within {_apart(folder / 'merged', plain):.1g}.")
        shutil.rmtree(plain)
        if kind == "none":
            pairs = in_turn(ours, lambda _: _copy(model, work), REPETITIONS)
            found += rows("merge, none, 1.1 B", "`cp -r` of the checkpoint", pairs, QUANTITIES[:2])
            memory = pairs[0][0].anon
        shutil.rmtree(folder)
    shutil.rmtree(model)
    twice = checkpoint(work / "twice", 2 * LAYERS)
    sample = _merge(trained_run(work / "merge-twice", twice, "none", 2 * LAYERS), work)
    notes.append(
        f"merge, none: peak anonymous memory {memory:.0f} MiB, and {sample.anon:.0f} MiB with twice the layers."
    )
    shutil.rmtree(twice)
    shutil.rmtree(work / "merge-twice")
    return found + notes


def _merge(folder: Path, work: Path) -> Sample:
    shutil.rmtree(folder / "merged", ignore_errors=True)
    (folder / "receipts" / "merge.json").unlink(missing_ok=True)
    os.sync()  # what the one before wrote is not this one's to wait for
    return run([HYDRATUNE, f"run_dir={folder}", "stages=[merge]"], work)


def _copy(model: Path, work: Path) -> Sample:
    shutil.rmtree(work / "copy", ignore_errors=True)
    os.sync()
    return run(["cp", "-r", str(model), str(work / "copy")], work)


def _apart(ours: Path, plain: Path) -> float:
    a, b = (
        {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
        for folder in (ours, plain)
    )
    assert a.keys() == b.keys()
    return max(torch.max(torch.abs(a[name].float() - b[name].float())).item() for name in a)
