"""Runs the jobs of a plan, of which other processes may do some: whoever holds a job's lock does it."""

import fcntl
import os
import platform
import signal
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import IO

from hydratune import pipeline
from hydratune.run.console import say, show
from hydratune.run.job import Record, is_cancelled, read_record, state_of, write_record
from hydratune.run.layout import RunDir, alone_in, is_held
from hydratune.run.signals import SAVED
from hydratune.sweep import processes
from hydratune.sweep.jobs import Job, Plan

TICK = 0.05  # seconds between two looks at the processes
GRACE = 60.0  # seconds that a job has to save its state, after which it is killed
SAID_AGAIN = 60.0  # seconds between two lines that say how far several jobs are


@dataclass
class _Running:
    """A job at work here."""

    job: Job
    process: processes.Process
    attempts: int  # that the job has had before
    gpu: tuple[str, IO[str]] | None  # its name, and a file whose lock is held as long as the job runs
    began: float = field(default_factory=time.monotonic)
    shown: int = 0  # bytes of its screen
    asked: float | None = None  # when it was asked to stop, monotonic
    why: str = ""  # it was asked to

    def ask(self, number: int, why: str = "") -> None:
        """To save its state and end."""
        if self.asked is None:
            self.asked, self.why = time.monotonic(), why
        _send(self.process, number)


class Runner:
    """The jobs of a plan, of which other processes may do some: whoever holds a job's lock does it."""

    def __init__(
        self, plan: Plan, fork: bool, slots: int, gpus: list[str], max_failures: int | None, timeout_min: float | None
    ) -> None:
        self.plan, self.fork, self.slots, self.gpus = plan, fork, slots, gpus
        self.max_failures, self.timeout_min = max_failures, timeout_min
        self.jobs = {job.number: job for job in plan.jobs}
        self.left: deque[Job] = deque()
        self.running: dict[int, _Running] = {}
        self.before = {number: _attempts(job.root) for number, job in self.jobs.items()}  # when this process began
        self.failures = 0
        self.signals: list[int] = []
        self.told = time.monotonic()

    def take(self, number: int, _frame: FrameType | None) -> None:
        """A signal that asks to stop goes to the jobs at work, and no other begins; a second Ctrl-C ends all at once."""
        again = number == signal.SIGINT and signal.SIGINT in self.signals
        self.signals.append(number)
        for one in self.running.values():
            one.ask(number)
            if again:
                one.asked = time.monotonic() - GRACE + 1  # a job ends by itself at a second Ctrl-C, or is killed

    def run(self) -> None:
        """Until all jobs have ended, wherever they were done."""
        for job in self.jobs.values():
            if self._is_done(job):
                say(f"{job.label}: done already")
            else:
                self.left.append(job)
        while self.left or self.running:
            if self._stopping():
                self.left.clear()
            for _ in range(len(self.left)):
                if len(self.running) < self.slots:
                    self._try(self.left.popleft())
            for one in [*self.running.values()]:
                self._look_at(one)
            self._tell()
            time.sleep(TICK if self.running else 0.5 if self.left else 0)

    @property
    def hopeless(self) -> bool:
        """Whether so many jobs failed that no other is to begin."""
        return self.max_failures is not None and self.failures >= self.max_failures

    def _stopping(self) -> bool:
        return bool(self.signals) or self.hopeless or self.plan.folder.is_cancelled()

    def _is_done(self, job: Job) -> bool:
        record, wanted = read_record(job.root), job.config.objective
        told = record is not None and (wanted is None or record.objective == wanted)
        return told and state_of(job.root, record) == "done" and not pipeline.unfinished(job.config)

    def _try(self, job: Job) -> None:
        """Start the job, unless another process has it, or has had it since this one began."""
        if is_held(job.root):
            self.left.append(job)  # it may die there
            return
        if is_cancelled(job.root) or self._is_done(job):
            return
        record = read_record(job.root)
        if record and record.state == "failed" and record.attempt > self.before[job.number]:
            return
        gpu = self._free_gpu()
        if self.gpus and gpu is None:
            self.left.appendleft(job)
            return
        say(f"\n{job.label}")
        visible = {"CUDA_VISIBLE_DEVICES": gpu[0]} if gpu else {}
        screen = RunDir(job.root).screen
        shown = screen.stat().st_size if screen.exists() else 0
        others = [one.gpu[1].fileno() for one in self.running.values() if one.gpu]
        process = processes.start(
            _words(job, self.plan.trusted), visible, screen, self.fork, [gpu[1].fileno()] if gpu else [], others
        )
        self.running[job.number] = _Running(job, process, record.attempt if record else 0, gpu, shown=shown)
        if self.signals:  # one that came while there was no process to take it
            self.running[job.number].ask(self.signals[-1])

    def _free_gpu(self) -> tuple[str, IO[str]] | None:
        """A GPU that no job of this sweep uses, whichever process has started it: its lock is held by the job, too."""
        for name in self.gpus:
            file = (self.plan.folder.root / f".gpu-{platform.node()}-{name.replace('/', '_')}").open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return name, file
            except BlockingIOError:
                file.close()
        return None

    def _look_at(self, one: _Running) -> None:
        if self.slots == 1:
            self._mirror(one)
        status = one.process.poll()
        limit = self.timeout_min
        if status is not None:
            self._ended(one, status)
        elif one.asked is not None and time.monotonic() - one.asked > GRACE:
            _send(one.process, signal.SIGKILL)
        elif limit is not None and one.asked is None and time.monotonic() - one.began > limit * 60:
            one.ask(signal.SIGTERM, f"it took longer than hydra.launcher.timeout_min={limit:g}")
        elif one.asked is None and is_cancelled(one.job.root):
            one.ask(signal.SIGTERM)

    def _mirror(self, one: _Running) -> None:
        """What the job has printed since the last time."""
        screen = RunDir(one.job.root).screen
        if screen.exists() and screen.stat().st_size > one.shown:
            with screen.open("rb") as file:
                file.seek(one.shown)
                new = file.read()
            one.shown += len(new)
            show(new.decode(errors="replace"))

    def _ended(self, one: _Running, status: int) -> None:
        del self.running[one.job.number]
        if self.slots == 1:
            self._mirror(one)
        if one.gpu:
            one.gpu[1].close()
        record = _settled(one, status)
        if record is None:  # another process was quicker
            self.left.append(one.job)
            return
        if record.state == "failed":
            self.failures += 1
        took = f"{time.monotonic() - one.began:.0f} s"
        value = "" if record.value is None else f": {record.objective} {_number(record.value)}"
        cause = f": {record.cause}" if record.cause else ""
        say(f"{one.job.label} {record.state} in {took}{value}{cause}")

    def _tell(self) -> None:
        if self.slots > 1 and time.monotonic() - self.told > SAID_AGAIN:
            self.told = time.monotonic()
            states = [state_of(job.root, read_record(job.root)) for job in self.jobs.values()]
            counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
            say(f"of {len(states)} jobs {counts}")


def _attempts(root: Path) -> int:
    record = read_record(root)
    return record.attempt if record else 0


def _send(process: processes.Process, number: int) -> None:
    if process.poll() is None:
        os.kill(process.pid, number)


def _settled(one: _Running, status: int) -> Record | None:
    """The job's record after its process has ended, which may not have come to writing it.

    None where it wasn't this process that had the job.
    """
    root = one.job.root
    record = read_record(root)
    mine = record is not None and record.pid == one.process.pid and record.host == platform.node()
    if not mine:
        if is_held(root) or state_of(root, record) == "done" or (record and record.attempt > one.attempts):
            return None
        record = Record("running", attempt=(record.attempt if record else 0) + 1, started=time.time())
    assert record is not None
    if record.state == "running":
        with alone_in(RunDir(root)):
            if status == SAVED or one.asked is not None:
                record = record.at_end("stopped")
            else:
                record = record.at_end("failed", _cause(status, RunDir(root).screen))
            write_record(root, record)
    if one.why and record.state == "stopped":  # with its state saved: another attempt goes on
        record = replace(record, state="failed", cause=f"{one.why}; its state is saved, and resume goes on")
        write_record(root, record)
    return record


def _cause(status: int, screen: Path) -> str:
    if status == -signal.SIGKILL:
        return "killed by SIGKILL, as the system does when the memory runs out"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    try:
        lines = [line for line in screen.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return (lines[-1].removeprefix("hydratune: ") if lines else f"it ended with exit status {status}")[:1000]


def _words(job: Job, trusted: bool) -> list[str]:
    """What a person would type to go on with the job. Trusted is what this command itself has just written."""
    quoted = str(job.root).replace("\\", "\\\\").replace("'", "\\'")
    return [f"run_dir='{quoted}'", f"stages=[{','.join(job.config.stages)}]", *(["trust=true"] if trusted else [])]


def _number(value: float) -> str:
    return f"{value:.4g}"
