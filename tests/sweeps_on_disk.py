"""A sweep's folder, written as a sweep and its jobs write it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hydratune.build.units import Units, packed
from hydratune.run.layout import RunDir

LOSS, ACC = "train/validation_loss", "merged/nouns/acc"


@dataclass
class Job:
    """`scores` are of documents where `weights` is None, else summed losses of rows; without them `value` is all."""

    overrides: Sequence[str]
    scores: Any = None
    weights: Any = None
    state: str = "done"
    cause: str | None = None
    value: float | None = None
    asked: str = "the same"
    higher_is_better: bool | None = None


def write_sweep(root: Path, jobs: Iterable[Job], objective: str = ACC, direction: str = "auto", **info: Any) -> Path:
    root.mkdir(parents=True)
    said = {"identity": "1", "typed": ["hydratune"], "swept": [], "direction": direction, "config_dir": None, **info}
    (root / "sweep.json").write_text(json.dumps(said))
    with (root / "jobs.jsonl").open("w") as lines:
        for number, job in enumerate(jobs):
            words = ["experiment=demo", *job.overrides]
            line = {"number": number, "hash": f"{number:08x}", "overrides": [*job.overrides], "words": words}
            lines.write(json.dumps(line) + "\n")
            _write_job(RunDir(root / str(number)), job, objective)
    return root


def _write_job(run: RunDir, job: Job, objective: str) -> None:
    run.root.mkdir()
    run.config.write_text("seed: 42\n")
    if job.state == "waiting":
        return
    value, known = job.value, None
    if job.scores is not None:
        scores = np.asarray(job.scores, float)
        weights = None if job.weights is None else np.asarray(job.weights, float)
        unit = "document" if weights is None else "row"
        known = Units(scores, weights, "mean", job.higher_is_better, job.asked, unit)
        value = known.value if value is None else value
        path = run.validation if objective == LOSS else run.documents
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(packed({objective: known}))
    done = job.state == "done"
    record = {
        "state": job.state, "cause": job.cause, "attempt": 1, "host": "here", "pid": 1, "started": 1.0, "ended": 3.5,
        "seconds": 2.5, "objective": objective if done else None, "value": value if done else None, "stderr": None,
    }  # fmt: skip
    run.job.write_text(json.dumps(record))
