"""A stage's receipt: written last, so that it is there only where the stage is finished."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydratune.run.layout import RunDir, write_json

LIBRARIES = ("hydratune", "torch", "transformers", "accelerate", "peft", "trl", "bitsandbytes", "datasets", "lm-eval")


def read(run: RunDir, stage: str) -> dict[str, Any] | None:
    """The receipt, or None where the stage is not finished."""
    path = run.receipt(stage)
    return json.loads(path.read_text()) if path.is_file() else None


def write(run: RunDir, stage: str, facts: dict[str, Any]) -> None:
    """Record a finished stage: `facts` (status, seconds, metrics, hardware, …), and with what it was made."""
    machine = {"node": platform.node(), "machine": platform.machine(), "python": platform.python_version()}
    made_with = {"versions": _versions(), "git_commit": _git_commit(), "machine": machine}
    write_json(run.receipt(stage), {"stage": stage, **facts, **made_with})


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_commit() -> str | None:
    """The commit of hydratune's own checkout; None for an installed wheel."""
    source = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
