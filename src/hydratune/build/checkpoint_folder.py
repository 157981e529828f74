"""The folder of a run's checkpoints: each of them is whole or not there, and the newest whole one is never deleted."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from transformers.trainer_callback import ExportableState

from hydratune.build.identity import FILE
from hydratune.build.store import damage, seal

WRITING = ".writing"  # holds what is being written or deleted; what is left there at a start is of a killed process


def last_checkpoint(folder: Path, say: Callable[[str], None], best: bool = False) -> Path | None:
    """The newest one that is whole; with `best`, whose best one so far is whole too, since the end needs that.

    Removes what killed processes have left, and newer ones that are damaged.
    """
    shutil.rmtree(folder / WRITING, ignore_errors=True)
    for path in reversed(_checkpoints(folder)):
        wrong = damage(path, FILE)
        lost = _best_lost(path) if best and not wrong else None
        if lost:  # no reason to delete it: the best one may be brought back; else an older one makes it again
            say(f"  {path.name} is passed over: {lost}")
            continue
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
    return sorted(found, key=step_of)


def step_of(checkpoint: str | Path) -> int:
    return int(Path(checkpoint).name.rpartition("-")[2])


def rest_of(checkpoint: str | Path, process: int) -> dict[str, Any]:
    """What CheckpointedTrainer kept there beside transformers' own files."""
    path = Path(checkpoint) / f"rest_{process}.pt"
    return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))


def restore_callbacks(callbacks: Iterable[Any], saved: dict[str, Any]) -> None:
    """What `saved`, transformers' own record in the checkpoint, says of those that have a state."""
    alike: dict[str, list[Any]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            alike.setdefault(type(callback).__name__, []).append(callback)
    for kind, ours in alike.items():
        states = saved.setdefault(kind, [callback.state() for callback in ours])
        states = states if isinstance(states, list) else [states]
        # each save has appended the states of all of a kind, in their order
        for callback, state in zip(ours, states[-len(ours) :], strict=False):
            for name, value in state["attributes"].items():
                setattr(callback, name, value)


def _best_lost(path: Path) -> str | None:
    best = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["best_model_checkpoint"]
    other = path.with_name(Path(best).name) if best else path
    wrong = damage(other, FILE) if other != path else None
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


def rotate(folder: Path, limit: int, best: str, newest: int) -> None:
    """Delete the oldest above `limit`, but neither that of step `newest`, just written, nor the one named `best`.

    Later ones, passed over at the start, go now: the log no longer holds the steps between, and with them there the
    newest would count as an old one.
    """
    paths = _checkpoints(folder)
    later = [path for path in paths if step_of(path) > newest]
    paths = paths[: len(paths) - len(later)]
    for path in later + [p for p in paths[:-1] if p.name != best][: max(0, len(paths) - limit)]:
        (folder / WRITING).mkdir(exist_ok=True)
        path.rename(folder / WRITING / path.name)  # so that a kill leaves no half of it under its name
    shutil.rmtree(folder / WRITING, ignore_errors=True)
