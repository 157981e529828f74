"""Start-up, mistakes and a dry run, beside the smallest Hydra application, `trl sft`, and the libraries' imports."""

import sys
from pathlib import Path

from tests.benchmarks.measure import BIN, HYDRATUNE, in_turn, prepared, rows, run

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
# mistakes that only the libraries, the model's configuration or the data can tell
LIBRARY_CASES = (
    "+trainer.extra.adam_beta=0.9",
    "lora.target_modules=[q_prj]",
    "+data.columns.messages=turns",
    "benchmark.tasks=[demo_categry]",
)
# what any tool that asks these libraries has to import; lm_eval where a task is asked for
IMPORTS = "import torch, transformers, peft, datasets; from trl import SFTConfig, SFTTrainer"
SWEEP = [
    "-m",
    "lora.r=range(1,11)",
    "trainer.learning_rate=1e-4,2e-4,3e-4,4e-4,5e-4,6e-4,7e-4,8e-4,9e-4,1e-3",
    "stages=[]",
]
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
    return found + _with_the_libraries(work)


def _with_the_libraries(work: Path) -> list[str]:
    prepared(work / "converted")  # so that no case pays for converting the model
    demo = [HYDRATUNE, "experiment=demo"]
    found = []
    for mistake in LIBRARY_CASES:
        imports = IMPORTS + (", lm_eval.tasks" if mistake.startswith("benchmark") else "")
        imports = imports.replace(", lm_eval.tasks", "; import lm_eval.tasks")
        pairs = in_turn(
            lambda _, mistake=mistake: run([*demo, mistake], work, fails=True),
            lambda _, imports=imports: run([sys.executable, "-c", imports], work),
            3,
        )
        found += rows(f"`{mistake}`", "the imports alone", pairs, ["wall", "cpu"])
    pairs = in_turn(lambda _: run([*demo, *SWEEP], work), lambda _: run([sys.executable, "-c", IMPORTS], work), 3)
    return found + rows("a sweep of 100 jobs, `stages=[]`", "the imports alone", pairs, ["wall", "cpu"])
