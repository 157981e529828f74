"""train_log.jsonl: one JSON object a logged step, each step once, also after a kill and a resume."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydratune.run.layout import write_atomically


def cut_log(path: Path, step: int) -> None:
    """Forget what was logged after `step`, where training goes on, and a last line that a kill cut off."""
    write_atomically(path, "".join(line + "\n" for line, entry in _lines(path) if entry["step"] <= step))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line, and what it says."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            entry["step"] + 0
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        yield line, entry


def append_log(path: Path, entry: dict[str, Any]) -> None:
    """Add a line, on the disk when this returns: no checkpoint may tell of a step that the log has lost.

    Not a second validation of a step: the last one comes after the last checkpoint, and a kill after it has it made
    again.
    """
    if "eval_loss" in entry and any(
        "eval_loss" in earlier and earlier["step"] == entry["step"] for _, earlier in _lines(path)
    ):
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def last_step(path: Path) -> int:
    """The last that is logged; 0 before the first."""
    return max((int(entry["step"]) for _, entry in _lines(path)), default=0)
