"""The metric of a run that a sweep looks at."""

from dataclasses import dataclass
from typing import Any

from hydratune.config.schema import Config, RunError

DEFAULTS = ("train/validation_loss", "train/loss")  # of those that a run has, the first
MEASURED_BY = {"train": "train", "base": "evaluate", "adapter": "evaluate", "merged": "evaluate", "prepare": "prepare"}


@dataclass(frozen=True)
class Objective:
    """One of the metrics, and its standard error where there is one."""

    name: str
    value: float
    stderr: float | None = None


def objective_of(config: Config, metrics: dict[str, Any]) -> Objective | None:
    """None before the stage that measures it. Raises RunError where that stage has not measured what is asked for."""
    name = config.objective or next((name for name in DEFAULTS if name in metrics), None)
    if name is None:
        return None
    value, stderr = metrics.get(name), metrics.get(f"{name}_stderr")
    if isinstance(value, int | float):
        return Objective(name, float(value), float(stderr) if isinstance(stderr, int | float) else None)
    if MEASURED_BY.get(name.partition("/")[0]) not in config.stages:
        return None
    has = ", ".join(key for key, value in metrics.items() if isinstance(value, int | float))
    raise RunError(f"objective={name} is none of the metrics of {config.run_dir}: it has {has}.")
