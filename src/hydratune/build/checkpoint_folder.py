"""The folder of a run's checkpoints: each of them is whole or not there, and the newest whole one is never deleted."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydratune.build.identity import FILE
from hydratune.build.store import damage, seal

WRITING = ".writing"  # holds what is being written or deleted; what is left there at a start is of a killed process


def last_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest one that is whole. Removes what killed processes have left, and newer ones that are damaged."""
    shutil.rmtree(folder / WRITING, ignore_errors=True)
    for path in reversed(_checkpoints(folder)):
        wrong = _unusable(path)
        if not wrong:
            return path
        sealed = (path / FILE).exists()
        why = f"can't be used and is removed: {wrong}" if sealed else "was cut off while it was written: removed"
        say(f"  {path.name} {why}")
        shutil.rmtree(path)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _unusable(path: Path) -> str | None:
    wrong = damage(path, FILE)
    if wrong:
        return wrong
    best = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["best_model_checkpoint"]
    other = path.with_name(Path(best).name) if best else path
    wrong = damage(other, FILE) if other != path else None
    # an older one goes on to make the best one again
    return f"of {other.name}, the best so far, {wrong}" if wrong else None


def put_in_place(folder: Path, name: str, told: dict[str, Any]) -> None:
    """What has been written to WRITING/name: sealed, on the disk, and only then a checkpoint."""
    written, target = folder / WRITING / name, folder / name
    seal(written, told, FILE)
    shutil.rmtree(target, ignore_errors=True)
    written.rename(target)
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)  # the rename
    finally:
        os.close(number)


def rotate(folder: Path, limit: int, best: str) -> None:
    """Delete the oldest above `limit`, but neither the newest nor the one named `best`."""
    paths = _checkpoints(folder)
    for path in [p for p in paths[:-1] if p.name != best][: max(0, len(paths) - limit)]:
        (folder / WRITING).mkdir(exist_ok=True)
        path.rename(folder / WRITING / path.name)  # so that a kill leaves no half of it under its name
    shutil.rmtree(folder / WRITING, ignore_errors=True)
