"""hydra/launcher=here: a sweep on this machine, N jobs at a time, each with a GPU of its own where there are GPUs."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from hydratune import preflight
from hydratune.config.schema import ConfigError, RunError
from hydratune.run.console import say
from hydratune.run.job import look_at
from hydratune.run.signals import SAVED, handled
from hydratune.sweep import processes
from hydratune.sweep.jobs import Checked, Job, Plan
from hydratune.sweep.runner import Runner
from hydratune.sweep.search import JobFailed


@dataclass(frozen=True)
class Here:
    """conf/hydra/launcher/here.yaml."""

    n_jobs: int | str = "auto"
    max_failures: int | None = None
    timeout_min: float | None = None
    grace_min: float | None = 10
    start_method: str = "auto"

    def __post_init__(self) -> None:
        if self.n_jobs != "auto" and not (_is_number(self.n_jobs, int) and int(self.n_jobs) > 0):
            raise ConfigError(f"hydra.launcher.n_jobs is auto or a number above 0, found {self.n_jobs!r}.")
        if self.max_failures is not None and not (_is_number(self.max_failures, int) and self.max_failures > 0):
            raise ConfigError(f"hydra.launcher.max_failures is null or a number above 0, found {self.max_failures!r}.")
        for name in ("timeout_min", "grace_min"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value, float) and value > 0):
                raise ConfigError(f"hydra.launcher.{name} is null or minutes above 0, found {value!r}.")
        if self.start_method not in ("auto", "fork", "spawn"):
            raise ConfigError(f"hydra.launcher.start_method is auto, fork or spawn, found {self.start_method!r}.")

    def ready(self, plan: Plan) -> None:
        """Raises ConfigError where there are too few GPUs; sets what the libraries read when they are imported."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that is closed ends no sweep
        gpus, slots = self._places()
        if gpus and slots > len(gpus):
            raise ConfigError(
                f"hydra.launcher.n_jobs={slots}, and each job has a GPU of its own, of which there are {len(gpus)}: set "
                f"hydra.launcher.n_jobs={len(gpus)}, or auto."
            )
        if not gpus and slots > 1:
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // slots)))

    @property
    def words(self) -> str:
        """What a job gets, for a person."""
        gpus, slots = self._places()
        return f"{'a GPU of its own' if gpus else 'the cores of this machine'}, {slots} at a time"

    def check(self, jobs: Checked) -> list[list[str]]:
        """What preflight says of each job, in a fork where jobs will be forked: this process runs nothing."""
        if not self._forks():
            if self.start_method == "fork":
                raise ConfigError(
                    "hydra.launcher.start_method=fork: the libraries have started threads or opened a GPU in this process, "
                    "and its forks would hang: set hydra.launcher.start_method=spawn."
                )
            return preflight.check_jobs(jobs)
        return processes.in_a_fork(lambda: preflight.check_jobs(jobs))

    def submitted(self, plan: Plan) -> set[int]:
        """Jobs that somebody else will start: here none, since who has a job's lock has it."""
        return set()

    def run(self, plan: Plan, failures: int) -> list[JobReturn]:
        """Run what is left, and say how it ended. `failures`: jobs of the same search that failed before."""
        gpus, slots = self._places()
        runner = Runner(plan, self._forks(), slots, gpus, self.max_failures, self.timeout_min, self.grace_min, failures)
        with handled(runner.take):
            runner.run()
        if runner.trouble:
            raise RunError(
                f"The sweep was stopped, its jobs with their state saved where that was possible: {runner.trouble}. Type the "
                "same command again when that is mended."
            )
        return _ended(plan, runner)

    def _places(self) -> tuple[list[str], int]:
        """The GPUs, and how many jobs are at work at a time."""
        gpus = _gpus()
        return gpus, int(self.n_jobs) if self.n_jobs != "auto" else max(1, len(gpus))

    def _forks(self) -> bool:
        return self.start_method != "spawn" and processes.may_fork()


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool)


def _gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them. Asks the driver's files and no library."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name for name in map(str.strip, said.split(",")) if name not in ("", "-1", "NoDevFiles")]
    return [str(number) for number in range(len([*Path("/proc/driver/nvidia/gpus").glob("*")]))]


def _ended(plan: Plan, runner: Runner) -> list[JobReturn]:
    """What Hydra's sweepers get. Exits with 75, 130 or 143 where the sweep was stopped."""
    folder, found = plan.folder.root, [(job, *look_at(job.root)) for job in plan.jobs]
    failed = [job for job, _, state in found if state == "failed"]
    left = [job for job, _, state in found if state not in ("done", "failed")]
    if failed:
        say(f"{len(failed)} of {len(found)} jobs failed: {', '.join(job.label for job in failed)}")
    if left:
        why = f" after {runner.failures} failures (hydra.launcher.max_failures)" if runner.hopeless else ""
        say(f"{len(left)} of {len(found)} jobs are not done{why}: hydratune sweep resume {folder} goes on")
    say(f"\nhydratune sweep status {folder}    and likewise logs, report, best, resume, cancel")
    if runner.signals:
        sys.exit(130 if runner.hurried else SAVED)
    if plan.folder.is_cancelled():
        sys.exit(143)
    if left and not failed:
        sys.exit(SAVED)
    return returned(plan)


def returned(plan: Plan) -> list[JobReturn]:
    """What Hydra's sweepers get of each job."""
    results = []
    for job in plan.jobs:
        record, state = look_at(job.root)
        if record and state == "done":
            results.append(returned_of(job, JobStatus.COMPLETED, record.value))
        else:
            cause = record.cause if record and record.cause else state
            results.append(returned_of(job, JobStatus.FAILED, JobFailed(f"{job.label} failed: {cause}")))
    return results


def returned_of(job: Job, status: JobStatus, value: Any) -> JobReturn:
    """What they get of one."""
    result = JobReturn(overrides=job.words, working_dir=str(job.root), status=status)
    result.return_value = value
    return result
