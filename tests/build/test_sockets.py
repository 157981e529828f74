"""The user's own Python: data.formatter and trainer.callbacks, used, and refused before weights load."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

MINE = """
import json
from pathlib import Path

from transformers import TrainerCallback


def exchange(row):
    return [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]


def fails(row):
    return row["answer"]


def forgets(row):
    return {"text": row["q"]}


class Counts(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        with Path("steps").open("a") as file:
            file.write(f"{state.global_step}\\n")


class Needs(TrainerCallback):
    def __init__(self, what):
        self.what = what


number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> list[str]:
    (tmp_path / "mine.py").write_text(MINE)
    rows = [{"q": f"What is otter number {n}?", "a": "It is a violin."} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["data=jsonl", "data.path=pairs.jsonl", "quantization=none", "run_dir=run", "trainer.max_steps=2"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.formatter=mine", "data.formatter=mine must name Python code as module:name."),
        ("data.formatter=nowhere:x", "data.formatter=nowhere:x: importing nowhere failed: ModuleNotFoundError"),
        ("data.formatter=mine:nothing", "data.formatter=mine:nothing: the module mine has no nothing."),
        ("data.formatter=mine:number", "data.formatter=mine:number must be a function that takes a row."),
        ("data.formatter=mine:fails", "row 1: data.formatter=mine:fails failed: KeyError: 'answer'."),
        (
            "data.formatter=mine:forgets",
            "row 1: plain text has no turns to supervise with data.loss=assistant: set data.loss=all.",
        ),
        ("trainer.callbacks=[mine:number]", "must be a class made from transformers.TrainerCallback."),
        ("trainer.callbacks=[mine:exchange]", "must be a class made from transformers.TrainerCallback."),
        ("trainer.callbacks=[mine:Needs]", "trainer.callbacks=mine:Needs: Needs() failed: "),
    ],
)
def test_what_is_refused(override: str, said: str, mine: list[str], tiny: Path, refused: Callable[..., str]) -> None:
    formatter = [] if override.startswith("data.formatter") else ["data.formatter=mine:exchange"]
    assert said in refused("model=local", f"model.name_or_path={tiny}", *mine, *formatter, override)


@pytest.mark.slow
def test_both_are_used(mine: list[str], tiny: Path, hydratune, tmp_path: Path) -> None:
    done = hydratune(
        "model=local", f"model.name_or_path={tiny}", *mine, "data.formatter=mine:exchange",
        "trainer.callbacks=[mine:Counts]", "stages=[prepare,train]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "steps").read_text().split() == ["1", "2"]
    assert json.loads((tmp_path / "run/metrics.json").read_text())["prepare/rows"] == 8
