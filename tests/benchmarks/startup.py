"""Start-up and mistakes, beside the smallest Hydra application and beside `trl sft`."""

import sys
from pathlib import Path

from tests.benchmarks.measure import BIN, HYDRATUNE, in_turn, rows, run

APP = """\
from dataclasses import dataclass, field

import hydra
from hydra.core.config_store import ConfigStore


@dataclass
class Lora:
    r: int = 16


@dataclass
class Trainer:
    max_steps: int = -1


@dataclass
class Config:
    lora: Lora = field(default_factory=Lora)
    trainer: Trainer = field(default_factory=Trainer)


ConfigStore.instance().store(name="config", node=Config)


@hydra.main(config_path=None, config_name="config", version_base="1.3")
def app(config):
    print(config)


app()
"""
# arguments of a Hydra application, those of `trl sft` that stand for the same, whether it is a mistake
CASES = (
    (["--help"], ["--help"], False),
    (["--cfg", "job"], None, False),
    (["lora.rnak=3"], ["--lora_rnak", "3"], True),
    (["trainer.max_steps=many"], ["--max_steps", "many"], True),
)
TRL = [
    str(BIN / "trl"), "sft", "--model_name_or_path", "none", "--dataset_name", "none", "--output_dir", "none",
    "--use_cpu", "--bf16", "False",
]  # fmt: skip
REPETITIONS = 7


def table(work: Path) -> list[str]:
    """Rows of the table."""
    (work / "app.py").write_text(APP)
    found = []
    for arguments, trl, mistake in CASES:
        ours, smallest = [HYDRATUNE, *arguments], [sys.executable, "app.py", *arguments]
        for command in (ours, smallest):  # once unmeasured, so that neither pays for a cold disk
            run(command, work, fails=mistake)
        what, both = f"`{' '.join(arguments)}`", ["wall", "cpu"]
        pairs = in_turn(
            lambda _, command=ours, mistake=mistake: run(command, work, fails=mistake),
            lambda _, command=smallest, mistake=mistake: run(command, work, fails=mistake),
            REPETITIONS,
        )
        found += rows(what, "smallest Hydra application", pairs, both)
        if trl:
            pair = run(ours, work, fails=mistake), run([*TRL, *trl], work, fails=mistake)
            found += rows(what, f"`trl sft … {' '.join(trl)}`", [pair], both)
    return found
