"""train_log.jsonl: one JSON object a logged step, each step once, also after a kill and a resume."""

import json
from pathlib import Path
from typing import Any

from hydratune.run.layout import write_atomically


def cut_log(path: Path, step: int) -> float:
    """Forget what was logged after `step`, where training goes on, and a last line that a kill cut off.

    Returns the seconds of training that the last line kept tells of.
    """
    kept, seconds = [], 0.0
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["step"] <= step:
            kept.append(line + "\n")
            seconds = entry.get("seconds", 0.0)
    write_atomically(path, "".join(kept))
    return seconds


def append_log(path: Path, entry: dict[str, Any]) -> None:
    """Add a line, whole on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
