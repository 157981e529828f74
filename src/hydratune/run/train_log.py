"""train_log.jsonl: one JSON object a logged step, each step once, also after a kill and a resume."""

import json
import os
from pathlib import Path
from typing import Any

from hydratune.run.layout import write_atomically


def cut_log(path: Path, step: int) -> None:
    """Forget what was logged after `step`, where training goes on, and a last line that a kill cut off."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(kept))


def append_log(path: Path, entry: dict[str, Any]) -> None:
    """Add a line, on the disk when this returns: no checkpoint may tell of a step that the log has lost."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
