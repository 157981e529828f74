"""Training SmolLM2-135M on the demo's rows, beside tests/plain_sft.py."""

import json
import shutil
import sys
from pathlib import Path

import hydratune
from tests.benchmarks.measure import Sample, in_turn, prepared, rows, run

SCRIPT = Path(__file__).parents[1] / "plain_sft.py"
DATA = Path(hydratune.__file__).with_name("demo") / "train.jsonl"
STEPS, BATCH = 6, 8
REPETITIONS = 2


def table(work: Path) -> list[str]:
    """Rows of the table, and a line for each quantization that says whether both trained the same."""
    found, notes = [], []
    for kind in ("none", "nf4"):
        template = work / f"prepared-{kind}"
        command, model = prepared(
            template,
            f"quantization={kind}",
            f"trainer.max_steps={STEPS}",
            f"trainer.per_device_train_batch_size={BATCH}",
        )
        plain = [sys.executable, str(SCRIPT), model, str(DATA)]
        plain += ["--loss", "completion", "--steps", str(STEPS), "--batch", str(BATCH)]
        plain += ["--nf4"] if kind == "nf4" else []

        def ours(number: int, kind: str = kind, template: Path = template, command: list[str] = command) -> Sample:
            folder = work / f"ours-{kind}-{number}"
            shutil.copytree(template, folder)
            return run([*command, f"run_dir={folder}", "stages=[prepare,train]"], work, mark=b"step 1/")

        def other(number: int, kind: str = kind, plain: list[str] = plain) -> Sample:
            return run([*plain[:4], f"plain-{kind}-{number}", *plain[4:]], work, mark=b"{'loss'")

        pairs = in_turn(ours, other, REPETITIONS)
        found += rows(f"train, {kind}", "transformers, peft, trl", pairs, ["wall", "cpu", "anon", "first"])
        log = (work / f"ours-{kind}-0" / "train_log.jsonl").read_text().splitlines()
        a, b = (
            [json.loads(line)["loss"] for line in log],
            json.loads((work / f"plain-{kind}-0/losses.json").read_text()),
        )
        apart = max(abs(x - y) for x, y in zip(a, b, strict=True))
        notes.append(f"train, {kind}: the losses of both are within {apart:.1g}, the last is {a[-1]:.4f}.")
    return found + notes
