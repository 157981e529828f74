"""sweep.reuse: what another sweep or run beside this one has done with the same settings, taken over."""

import os
import shutil
from collections import defaultdict
from pathlib import Path

from hydratune.config.load import config_hash
from hydratune.config.schema import RunError
from hydratune.run import receipt
from hydratune.run.console import say
from hydratune.run.layout import RunDir, alone_in
from hydratune.sweep.folder import SweepDir
from hydratune.sweep.jobs import Job, Plan

# what is another run's own
LEFT = {"config.yaml", ".hydra", "job.json", "screen.log", ".lock", "cancelled", "checkpoints"}


def take_over(plan: Plan) -> None:
    """Copy what was trained with a job's settings, and what was made of it, into the job's folder, where it has not begun.

    Weights are linked where the file system can.
    """
    beside = plan.folder.root.absolute().parent
    known: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(beside.glob("*/jobs.jsonl")):
        other = SweepDir(path.parent)
        if path.parent != plan.folder.root.absolute():
            for entry in other.entries():
                known[entry.hash].append(other.run_of(entry.number))
    for job in plan.jobs:
        alone = sorted(path for path in beside.glob(f"*-{config_hash(job.config)}") if path.is_dir())
        found = next((one for one in [*known[job.hash], *alone] if receipt.is_whole(RunDir(one), "train")), None)
        if found and not _has_begun(job):
            try:
                with alone_in(RunDir(job.root)):
                    _copy(found, job.root)
            except RunError:
                continue  # another process has the job
            say(f"{job.label}: taken over from {os.path.relpath(found)}")


def _has_begun(job: Job) -> bool:
    return (job.root / "checkpoints").exists() or receipt.read(RunDir(job.root), "train") is not None


def _copy(source: Path, target: Path) -> None:
    """The receipts last: they say that the rest is there."""
    files = [path for path in source.rglob("*") if path.is_file() and path.relative_to(source).parts[0] not in LEFT]
    for path in sorted(files, key=lambda path: (path.parent.name == "receipts", path)):
        new = target / path.relative_to(source)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        if path.suffix == ".safetensors":
            try:
                os.link(path, new)  # nothing writes into such a file: a new one takes its name
                continue
            except OSError:
                pass
        shutil.copy2(path, new)
