"""Which way a metric is better: as was asked, else as its task says, else by its name."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hydratune.run.layout import RunDir

if TYPE_CHECKING:  # numpy, which a mistake should not wait for
    from hydratune.build.units import Units

MODELS = ("base", "adapter", "merged")
LOWER = ("loss", "perplexity", "ppl", "bits_per_byte", "seconds", "ter", "brier_score", "mse", "mae")
HIGHER = {
    "acc", "acc_norm", "acc_mutual_info", "exact_match", "f1", "bleu", "chrf", "mcc", "mc1", "mc2", "em",
    "likelihood", "pass@1", "prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc",
}  # fmt: skip
ASKED = 20  # runs that are asked what their task says: one may have lost its file


def least_is_best(metric: str, direction: str, runs: Iterable[Path] = ()) -> bool | None:
    """Whether the least value of `metric` (`<model>/<task>/<metric>[,filter]`) is the best; None where nothing tells.

    `runs` are folders of some that have measured it.
    """
    if direction != "auto":
        return direction == "minimize"
    for run in islice(runs, ASKED):
        units = units_of_run(run, metric)
        if not isinstance(units, str) and units.higher_is_better is not None:
            return not units.higher_is_better
    name = metric.rpartition("/")[2].partition(",")[0]
    if f"_{name}".endswith(tuple(f"_{word}" for word in LOWER)):  # whole words: a parameter is no ter
        return True
    return False if name in HIGHER else None


def units_of_run(root: Path, metric: str) -> "Units | str":
    """The documents or rows that a run's metric is of, or why it has none."""
    from hydratune.build.units import read_units

    run = RunDir(root)
    if metric == "train/validation_loss":
        return read_units(run.validation, metric)
    if metric.partition("/")[0] in MODELS:
        return read_units(run.documents, metric)
    return f"{metric} is not kept by documents or rows"
