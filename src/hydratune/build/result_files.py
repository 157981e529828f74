"""The files that lm-eval's own tools write and read: a model's results, and a task's samples."""

import json
import re
from pathlib import Path
from typing import Any

from hydratune.build.again import again
from hydratune.config.schema import ConfigError

DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d.-]+")


def read_results(path: Path | None, run: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else None
        if (
            isinstance(found, dict)
            and isinstance(found.get("results"), dict)
            and isinstance(found.get("configs"), dict)
        ):
            return {"group_subtasks": {}, "higher_is_better": {}} | found
    except (OSError, ValueError):
        pass
    raise ConfigError(f"{path or run / 'benchmark'} holds no results of lm-eval: type {again(run)}.")


def read_samples(path: Path, run: Path) -> dict[str, list[dict[str, Any]]]:
    """Filter -> samples in the order of their documents."""
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                sample = json.loads(line)
                kept = ("doc_id", "doc_hash", "prompt_hash", "metrics", "filtered_resps", *sample["metrics"])
                found.setdefault(sample["filter"], []).append({key: sample[key] for key in kept if key in sample})
        ordered = {name: sorted(samples, key=lambda one: one["doc_id"]) for name, samples in found.items()}
    except (OSError, ValueError, KeyError, TypeError):
        ordered = {}
    if not ordered:
        raise ConfigError(f"{path} is no whole file of samples: type {again(run)}.")
    return ordered


def latest(folder: Path, start: str, end: str) -> Path | None:
    """lm-eval's file of that name with the latest date."""
    dated = [
        p for p in folder.glob(f"*{end}") if p.name.startswith(start) and DATE.fullmatch(p.name[len(start) : -len(end)])
    ]
    return max(dated, default=None, key=lambda path: path.name)
