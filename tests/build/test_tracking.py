"""tracking=wandb_offline leaves a file that holds the training log; tracking=off leaves nothing."""

import json
from pathlib import Path

import pytest
from wandb_files import history, records

pytestmark = pytest.mark.slow


def train(hydratune, tiny: Path, rows: Path, *more: str) -> None:
    done = hydratune(
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
        "trainer.max_steps=4", "stages=[prepare,train]", "run_dir=run", "name=otter", *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_offline(hydratune, environment, tiny: Path, rows: Path, tmp_path: Path) -> None:
    environment["HOME"] = str(tmp_path)  # wandb's own logs and settings
    train(hydratune, tiny, rows, "tracking=wandb_offline", "tracking.project=nouns")
    (path,) = (tmp_path / "run").rglob("*.wandb")
    assert path.is_relative_to(tmp_path / "run/wandb") and "offline" in path.parent.name
    runs, ended = [], False
    for record in records(path):
        if record.HasField("run"):
            runs.append((record.run.project, record.run.display_name))
        ended = ended or record.HasField("exit")
    logged = [json.loads(line) for line in (tmp_path / "run/train_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    sent = [(row["train/global_step"], row["train/loss"]) for row in history(path) if "train/loss" in row]
    assert sent == [(row["step"], pytest.approx(row["loss"])) for row in logged]
    assert runs and set(runs) == {("nouns", "otter")}
    assert ended


def test_off(hydratune, environment, tiny: Path, rows: Path, tmp_path: Path) -> None:
    environment["HOME"] = str(tmp_path / "home")
    train(hydratune, tiny, rows, "tracking=off")
    assert not list(tmp_path.rglob("*wandb*"))
    assert len((tmp_path / "run/train_log.jsonl").read_text().splitlines()) == 4
