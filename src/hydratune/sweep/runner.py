"""Runs the jobs of a plan, of which other processes may do some: whoever holds a job's lock does it."""

import fcntl
import platform
import signal
import time
from collections import deque
from types import FrameType
from typing import IO

from hydratune import pipeline
from hydratune.config.load import saved_form
from hydratune.config.typed import quoted
from hydratune.run import receipt
from hydratune.run.console import say, show
from hydratune.run.job import AFTER_ATTEMPT, Record, is_cancelled, look_at, read_record
from hydratune.run.layout import RunDir, is_held
from hydratune.sweep import processes
from hydratune.sweep.ending import Running, settled
from hydratune.sweep.jobs import Job, Plan

TICK = 0.05  # seconds between two looks at the processes
GRACE = 5.0  # seconds from the second Ctrl-C, or SIGTERM, to SIGKILL
TWICE = 1.0  # seconds: `timeout` and the like send SIGTERM to a process and then to its group, which is no second one
SAID_AGAIN = 60.0  # seconds between two lines that say how far several jobs are


class Runner:
    """Starts jobs, looks after them, and stops them."""

    def __init__(
        self, plan: Plan, fork: bool, slots: int, gpus: list[str], max_failures: int | None,
        timeout_min: float | None, grace_min: float | None, failures: int,
    ) -> None:  # fmt: skip
        self.plan, self.fork, self.slots, self.gpus = plan, fork, slots, gpus
        self.max_failures, self.timeout_min, self.grace_min = max_failures, timeout_min, grace_min
        self.jobs = {job.number: job for job in plan.jobs}
        self.left: deque[Job] = deque()
        self.running: dict[int, Running] = {}
        self.before = {number: _attempts(read_record(job.root)) for number, job in self.jobs.items()}
        self.failures = failures  # those of a search's earlier jobs among them
        self.trouble = ""  # with the disk, which ends the sweep
        self.signals: list[int] = []
        self.passed_on = 0  # how many of them
        self.terminated = 0.0  # monotonic, when SIGTERM came
        self.told = time.monotonic()

    def take(self, number: int, _frame: FrameType | None) -> None:
        """A signal that asks to stop. Only noted, since it may come in the middle of anything."""
        now = time.monotonic()
        if number == signal.SIGTERM and now - self.terminated < TWICE:
            return
        if number == signal.SIGTERM:
            self.terminated = now
        self.signals.append(number)

    def run(self) -> None:
        """Until all jobs have ended, wherever they were done."""
        for job in self.jobs.values():
            if self._is_done(job):
                say(f"{job.label}: done already")
            else:
                self.left.append(job)
        while self.left or self.running:
            try:
                self._look_around()
            except OSError as error:
                self.trouble = f"{error.strerror} ({error.filename or self.plan.folder.root})"
            time.sleep(TICK if self.running else 0.5 if self.left else 0)

    def _look_around(self) -> None:
        self._pass_on()
        if self._stopping():
            self.left.clear()
        for _ in range(len(self.left)):
            if len(self.running) == self.slots or not self._try(self.left.popleft()):
                break
        for one in [*self.running.values()]:
            self._look_at(one)
        self._tell()

    def _pass_on(self) -> None:
        """Signals go to the jobs at work: each saves its state; a second Ctrl-C or SIGTERM ends all at once."""
        new, self.passed_on = self.signals[self.passed_on :], len(self.signals)
        for one in self.running.values():
            for number in new:
                one.ask(number, self.grace_min)
            if self.trouble and one.asked is None:
                one.ask(signal.SIGTERM, self.grace_min)
            if new and self.hurried:
                one.deadline = min(one.deadline, time.monotonic() + GRACE)

    @property
    def hurried(self) -> bool:
        """Whether somebody asked to stop a second time, and waits for no state to be saved."""
        return any(self.signals.count(number) > 1 for number in (signal.SIGINT, signal.SIGTERM))

    @property
    def hopeless(self) -> bool:
        """Whether so many jobs failed that no other is to begin."""
        return self.max_failures is not None and self.failures >= self.max_failures

    def _stopping(self) -> bool:
        return bool(self.signals or self.trouble) or self.hopeless or self.plan.folder.is_cancelled()

    def _is_done(self, job: Job) -> bool:
        """With the objective and the stages that are asked for now: another command may have asked for less."""
        (record, state), wanted = look_at(job.root), job.config.objective
        if record is None or state != "done" or wanted not in (None, record.objective):
            return False
        left = set(pipeline.unfinished(job.config))
        if record.attempt > self.before[job.number] and _answered(job, record):
            left.discard("generate")
        return not left

    def _try(self, job: Job) -> bool:
        """Start the job, unless another process has it, or has had it since this one began. False: no GPU is free."""
        if is_held(job.root):
            self.left.append(job)  # it may die there
            return True
        record = read_record(job.root)
        failed_lately = record is not None and record.state == "failed" and record.attempt > self.before[job.number]
        if is_cancelled(job.root) or failed_lately or self._is_done(job):
            return True
        gpu = self._free_gpu()
        if self.gpus and gpu is None:
            self.left.appendleft(job)
            return False
        say(f"\n{job.label}")
        self.plan.folder.put_config(job.root, saved_form(job.config), job.words)  # as this command wants it
        environment = {AFTER_ATTEMPT: str(_attempts(record))}
        kept, closed = [], [one.gpu.fileno() for one in self.running.values() if one.gpu]
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"], kept = gpu[0], [gpu[1].fileno()]
        screen = RunDir(job.root).screen
        shown = screen.stat().st_size if screen.exists() else 0
        process = processes.start(_words(job, self.plan.trusted), environment, screen, self.fork, kept, closed)
        self.running[job.number] = Running(job, process, _attempts(record), gpu[1] if gpu else None, shown=shown)
        return True

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

    def _look_at(self, one: Running) -> None:
        if self.slots == 1:
            self._mirror(one)
        limit = self.timeout_min
        if (status := one.process.poll()) is not None:
            self._ended(one, status)
        elif time.monotonic() > one.deadline:
            if not self.hurried:
                one.late = f"did not end within {self.grace_min:g} minutes (hydra.launcher.grace_min)"
            processes.kill(one.process)
        elif one.asked is None and limit is not None and time.monotonic() - one.began > limit * 60:
            one.ask(signal.SIGTERM, self.grace_min, f"it took longer than hydra.launcher.timeout_min={limit:g}")
        elif one.asked is None and is_cancelled(one.job.root):
            one.ask(signal.SIGTERM, self.grace_min)

    def _mirror(self, one: Running) -> None:
        """What the job has printed since the last time."""
        screen = RunDir(one.job.root).screen
        if screen.exists() and screen.stat().st_size > one.shown:
            with screen.open("rb") as file:
                file.seek(one.shown)
                new = file.read()
            one.shown += len(new)
            show(new.decode(errors="replace"))

    def _ended(self, one: Running, status: int) -> None:
        del self.running[one.job.number]
        if self.slots == 1:
            self._mirror(one)
        if one.gpu:
            one.gpu.close()
        record = settled(one, status)
        if record is None:  # another process was quicker, or it had not begun
            self.left.append(one.job)
            return
        if record.state == "failed":
            self.failures += 1
        took = f"{time.monotonic() - one.began:.0f} s"
        value = "" if record.value is None else f": {record.objective} {record.value:.4g}"
        cause = f": {record.cause}" if record.cause else ""
        say(f"{one.job.label} {record.state} in {took}{value}{cause}")

    def _tell(self) -> None:
        if self.slots > 1 and time.monotonic() - self.told > SAID_AGAIN:
            self.told = time.monotonic()
            states = [look_at(job.root)[1] for job in self.jobs.values()]
            counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
            say(f"of {len(states)} jobs {counts}")


def _attempts(record: Record | None) -> int:
    return record.attempt if record else 0


def _answered(job: Job, record: Record) -> bool:
    """Whether the prompts were answered by that attempt: those of a file are never known to be the same again."""
    run = RunDir(job.root)
    done = receipt.read(run, "generate")
    same = done is not None and done.get("key") == saved_form(job.config)["generate"]
    return same and run.receipt("generate").stat().st_mtime >= record.started


def _words(job: Job, trusted: bool) -> list[str]:
    """What a person would type to go on with the job. Trusted is what this command itself has just written."""
    stages = f"stages=[{','.join(job.config.stages)}]"
    return [f"run_dir={quoted(str(job.root))}", stages, *(["trust=true"] if trusted else [])]
