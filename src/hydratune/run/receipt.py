"""A stage's receipt: written last, so that it is there only where the stage is finished."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hydratune.run.layout import RunDir, write_json

LIBRARIES = ("hydratune", "torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "lm-eval")


def read(run: RunDir, stage: str) -> dict[str, Any] | None:
    """The receipt, or None where the stage is not finished."""
    path = run.receipt(stage)
    return json.loads(path.read_text()) if path.is_file() else None


def write(run: RunDir, stage: str, status: str, seconds: float, metrics: dict[str, Any], key: Any) -> None:
    """Record a finished stage; `key` is the part of the configuration that it depends on."""
    write_json(
        run.receipt(stage),
        {
            "stage": stage, "status": status, "seconds": round(seconds, 2), "metrics": metrics, "key": key,
            "versions": _versions(), "git_commit": _git_commit(),
            "hardware": {"machine": platform.machine(), "node": platform.node(), "python": platform.python_version()},
        },
    )  # fmt: skip


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
