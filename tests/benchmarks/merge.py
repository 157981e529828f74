"""Merging an adapter, beside plain_merge.py."""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.benchmarks.measure import Sample, in_turn, prepared, rows, run

SCRIPT = Path(__file__).with_name("plain_merge.py")
REPETITIONS = 3


def table(work: Path) -> list[str]:
    """Rows of the table, and a line for each quantization that says whether both wrote the same."""
    found, notes = [], []
    for kind in ("none", "nf4"):
        folder, plain = work / f"merge-{kind}", work / f"plain-merge-{kind}"
        command, model = prepared(
            folder, f"quantization={kind}", "trainer.max_steps=2", "trainer.per_device_train_batch_size=1"
        )
        command += [f"run_dir={folder}"]
        run([*command, "stages=[train]"], work)
        script = [sys.executable, str(SCRIPT), model, str(folder / "adapter"), str(plain)]
        script += ["--nf4"] if kind == "nf4" else []

        def ours(_: int, folder: Path = folder, command: list[str] = command) -> Sample:
            shutil.rmtree(folder / "merged", ignore_errors=True)
            (folder / "receipts" / "merge.json").unlink(missing_ok=True)
            return run([*command, "stages=[merge]"], work)

        def other(_: int, plain: Path = plain, script: list[str] = script) -> Sample:
            shutil.rmtree(plain, ignore_errors=True)
            return run(script, work)

        pairs = in_turn(ours, other, REPETITIONS)
        found += rows(f"merge, {kind}", "transformers, peft", pairs, ["wall", "cpu", "anon"])
        notes.append(f"merge, {kind}: the weights of both are within {_apart(folder / 'merged', plain):.1g}.")
        shutil.rmtree(folder)
        shutil.rmtree(plain)
    return found + notes


def _apart(ours: Path, plain: Path) -> float:
    a, b = (load_file(folder / "model.safetensors") for folder in (ours, plain))
    assert a.keys() == b.keys()
    return max(torch.max(torch.abs(a[name].float() - b[name].float())).item() for name in a)
