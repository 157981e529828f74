"""sweep.reuse: what another sweep or run beside this one has done with the same settings, taken over."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hydratune.config.load import config_hash
from hydratune.run import receipt
from hydratune.run.layout import RunDir, alone_in
from hydratune.sweep.folder import SweepDir
from hydratune.sweep.jobs import Job

# what is another run's own
LEFT = {"config.yaml", ".hydra", "job.json", "screen.log", ".lock", "cancelled", "checkpoints"}


def take_over(job: Job, folder: SweepDir) -> Path | None:
    """Copy what was trained with this job's settings, and what was made of it, into its folder; returns where it was.

    None where there is none, or the job has begun already. Weights are linked where the file system can.
    """
    if (job.root / "checkpoints").exists() or receipt.read(RunDir(job.root), "train"):
        return None
    for other in _same(job, folder):
        if receipt.is_whole(RunDir(other), "train"):
            with alone_in(RunDir(job.root)):
                _copy(other, job.root)
            return other
    return None


def _same(job: Job, folder: SweepDir) -> Iterator[Path]:
    """Runs with the job's hash in the folder that the sweep lies in."""
    beside = folder.root.absolute().parent
    for path in sorted(beside.glob("*/jobs.jsonl")):
        other = SweepDir(path.parent)
        if path.parent != folder.root.absolute():
            yield from (other.run_of(entry.number) for entry in other.entries() if entry.hash == job.hash)
    yield from sorted(path for path in beside.glob(f"*-{config_hash(job.config)}") if path.is_dir())


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
