"""A job of a sweep: its record, which says how it is and how it ended, whoever looks and whatever has died."""

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hydratune.config.schema import ConfigError, RunError
from hydratune.config.secrets import redacted
from hydratune.run.layout import RunDir, alone_in, is_held, write_json
from hydratune.run.objective import Objective
from hydratune.run.signals import SAVED, before_stop

AFTER_ATTEMPT = "HYDRATUNE_AFTER_ATTEMPT"  # environment: the attempts that the job had when it was started for another
CANCELLED = "cancelled"  # the name of the marker, in a job's folder or in the sweep's
STATES = ("waiting", "queued", "running", "done", "failed", "stopped", "interrupted", CANCELLED)


@dataclass(frozen=True)
class Record:
    """job.json. Times are seconds since the epoch."""

    state: str  # "running", "done", "failed", or "stopped" by a signal with its state saved
    cause: str | None = None  # of a failure, in a sentence
    attempt: int = 1
    host: str = ""
    pid: int = 0
    started: float = 0.0  # of this attempt
    ended: float | None = None
    seconds: float = 0.0  # of all attempts that have ended
    objective: str | None = None  # which of the metrics
    value: float | None = None
    stderr: float | None = None

    def at_end(self, state: str, cause: str | None = None) -> "Record":
        """The same when the attempt has ended."""
        now = time.time()
        return replace(
            self, state=state, cause=cause, ended=now, seconds=round(self.seconds + max(0.0, now - self.started), 2)
        )


def read_record(root: Path) -> Record | None:
    """None where the job has not begun."""
    try:
        found = json.loads(RunDir(root).job.read_bytes())
        return Record(**{key: value for key, value in found.items() if key in Record.__dataclass_fields__})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_record(root: Path, record: Record) -> None:
    """Whole or not at all."""
    write_json(RunDir(root).job, asdict(record))


def state_of(root: Path, record: Record | None) -> str:
    """One of STATES. A record can't tell of the kill that came after it; the lock, which the system lets go of, can."""
    state = record.state if record else "waiting"
    if state == "running":
        state = "running" if is_held(root) else "interrupted"
    elif record is None and is_held(root):
        state = "running"
    if state in ("waiting", "stopped", "interrupted") and is_cancelled(root):
        return CANCELLED
    return state


def look_at(root: Path) -> tuple[Record | None, str]:
    """The job's record, and its state now."""
    record = read_record(root)
    return record, state_of(root, record)


def is_cancelled(root: Path) -> bool:
    """Whether the job, or its whole sweep, is not to go on unless somebody asks for that."""
    return (root / CANCELLED).exists() or (root.parent / CANCELLED).exists()


def is_job(root: Path) -> bool:
    """Whether the run directory is one of a sweep's."""
    return root.name.isdecimal() and (root.parent / "sweep.json").is_file()


class Outcome:
    """What the run tells of itself for its record."""

    objective: Objective | None = None


@contextmanager
def recorded(run: RunDir) -> Iterator[Outcome]:
    """Keep the record of a run that is a sweep's job, and its lock; any other run has none."""
    outcome = Outcome()
    if not is_job(run.root.resolve()):
        yield outcome
        return
    with alone_in(run):
        before = read_record(run.root) or Record("waiting", attempt=0)
        if before.attempt > int(os.environ.pop(AFTER_ATTEMPT, before.attempt)):
            raise RunError(f"Another process has had {run.root} meanwhile.")
        record = Record(
            "running", attempt=before.attempt + 1, host=platform.node(), pid=os.getpid(), started=time.time(),
            seconds=before.seconds,
        )  # fmt: skip
        try:
            write_record(run.root, record)
        except OSError as error:
            raise RunError(f"{run.root} can't be written: {error.strerror}.") from None
        ended = record.at_end("failed", "it ended without a word")
        try:
            with before_stop(lambda: _stopped(run.root, record)):
                yield outcome
            ended = record.at_end("done")
            if found := outcome.objective:
                ended = replace(ended, objective=found.name, value=found.value, stderr=found.stderr)
        except SystemExit as end:
            ended = record.at_end(
                "stopped" if end.code == SAVED else "failed", None if end.code == SAVED else _said(end)
            )
            raise
        except BaseException as error:
            ended = record.at_end("failed", _said(error))
            raise
        finally:
            with suppress(OSError):  # a full disk hides no other error; without it the job counts as interrupted
                write_record(run.root, ended)


def _stopped(root: Path, record: Record) -> None:
    """Unless this is a child of the run's process."""
    if os.getpid() == record.pid:
        write_record(root, record.at_end("stopped"))


def cause_of(status: int, screen: Path) -> str:
    """Of the end of a process that wrote no record: the last line that it printed."""
    try:
        said = screen.read_text(errors="replace").splitlines()
    except OSError:
        said = []
    # without what Slurm's own tools add to it
    lines = [line for line in said if line.strip() and not re.match(r"Slurm: job|srun: .*(Exited|Terminat)", line)]
    return (lines[-1].removeprefix("hydratune: ") if lines else f"it ended with exit status {status}")[:1000]


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ended with exit status {error.code}"
    text = str(redacted(" ".join(str(error).split())))
    return text if isinstance(error, ConfigError | RunError) else f"{type(error).__name__}: {text}"[:1000]
