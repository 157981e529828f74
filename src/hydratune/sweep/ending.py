"""How a job's process ended, for the record of a job that did not come to writing it."""

import math
import os
import platform
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from hydratune.config.schema import RunError
from hydratune.run.job import Record, cause_of, read_record, write_record
from hydratune.run.layout import RunDir, alone_in
from hydratune.run.signals import SAVED
from hydratune.sweep.jobs import Job
from hydratune.sweep.processes import Process


@dataclass
class Running:
    """A job at work in a process of ours."""

    job: Job
    process: Process
    attempts: int  # that the job has had before
    gpu: IO[str] | None  # a file whose lock is held as long as the job runs
    began: float = field(default_factory=time.monotonic)
    shown: int = 0  # bytes of its screen
    asked: float | None = None  # when it was asked to stop, monotonic
    why: str = ""  # it was asked to, where that makes it a failure
    deadline: float = math.inf  # monotonic, after which it is killed
    late: str = ""  # how long it had to end, of one that didn't and was killed

    def ask(self, number: int, grace_min: float | None, why: str = "") -> None:
        """To save its state and end, which may take `grace_min`."""
        if self.asked is None:
            self.asked, self.why = time.monotonic(), why
            self.deadline = math.inf if grace_min is None else self.asked + grace_min * 60
        if self.process.poll() is None:
            os.kill(self.process.pid, number)


def settled(one: Running, status: int) -> Record | None:
    """The job's record after its process has ended with `status` (below 0 that of a signal).

    None where it wasn't this process that had the job, or it was asked to stop before it had begun.
    """
    root = one.job.root
    record = read_record(root)
    if record is None or record.pid != one.process.pid or record.host != platform.node():
        if (one.asked is not None and not one.why) or (
            record and (record.attempt > one.attempts or record.state == "done")
        ):
            return None
        record = Record("running", attempt=one.attempts + 1, started=time.time())
    if record.state == "running":
        record = _told_by(record, one, status)
        try:
            with alone_in(RunDir(root)):
                write_record(root, record)
        except RunError:  # another process goes on with it already
            return None
    if one.why and record.state in ("stopped", "interrupted"):
        left = "its state is saved, and resume goes on" if record.state == "stopped" else "its last checkpoint goes on"
        record = replace(record, state="failed", cause=f"{one.why}{one.late and f' and {one.late}'}; {left}")
        write_record(root, record)
    return record


def _told_by(record: Record, one: Running, status: int) -> Record:
    if status == SAVED:
        return record.at_end("stopped")
    if one.asked is not None and (status < 0 or status == 130):
        how = f"asked to end and {one.late}" if one.late else "ended before it had saved its state"
        return record.at_end("interrupted", f"it was {how}: its last checkpoint goes on")
    return record.at_end("failed", _cause(status, RunDir(one.job.root).screen))


def _cause(status: int, screen: Path) -> str:
    if status == -signal.SIGKILL:
        return "killed by SIGKILL, as the system does when the memory runs out"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else cause_of(status, screen)
