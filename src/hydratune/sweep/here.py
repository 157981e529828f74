"""hydra/launcher=here: a sweep on this machine, N jobs at a time, each with a GPU of its own where there are GPUs."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from hydratune import pipeline, preflight
from hydratune.config.schema import ConfigError, RunError
from hydratune.run.console import say
from hydratune.run.job import look_at
from hydratune.run.signals import SAVED, handled
from hydratune.run.table import columns
from hydratune.sweep import processes
from hydratune.sweep.jobs import Job, Plan
from hydratune.sweep.reuse import take_over
from hydratune.sweep.runner import Runner

FAILED = 3  # exit status of a sweep with failed jobs


@dataclass(frozen=True)
class Here:
    """conf/hydra/launcher/here.yaml."""

    n_jobs: int | str = "auto"
    max_failures: int | None = None
    timeout_min: float | None = None
    start_method: str = "auto"

    def __post_init__(self) -> None:
        if self.n_jobs != "auto" and not (_is_number(self.n_jobs, int) and int(self.n_jobs) > 0):
            raise ConfigError(f"hydra.launcher.n_jobs is auto or a number above 0, found {self.n_jobs!r}.")
        if self.max_failures is not None and not (_is_number(self.max_failures, int) and self.max_failures > 0):
            raise ConfigError(f"hydra.launcher.max_failures is null or a number above 0, found {self.max_failures!r}.")
        if self.timeout_min is not None and not (_is_number(self.timeout_min, float) and self.timeout_min > 0):
            raise ConfigError(f"hydra.launcher.timeout_min is null or minutes above 0, found {self.timeout_min!r}.")
        if self.start_method not in ("auto", "fork", "spawn"):
            raise ConfigError(f"hydra.launcher.start_method is auto, fork or spawn, found {self.start_method!r}.")


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool)


def launch(plan: Plan, here: Here) -> list[JobReturn]:
    """Check what the libraries know, write the sweep down, run what is left of it, and say how it ended."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that is closed ends no sweep
    gpus = _gpus()
    slots = int(here.n_jobs) if here.n_jobs != "auto" else max(1, len(gpus))
    if gpus and slots > len(gpus):
        raise ConfigError(
            f"hydra.launcher.n_jobs={slots}, and each job has a GPU of its own, of which there are {len(gpus)}: set "
            f"hydra.launcher.n_jobs={len(gpus)}, or auto."
        )
    if not gpus and slots > 1:  # before a library reads it
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // slots)))
    if plan.folder.is_cancelled():
        raise ConfigError(f"{plan.folder.root} was cancelled: type hydratune sweep resume {plan.folder.root} to go on.")
    asked = [(job.config, pipeline.unfinished(job.config)) for job in plan.jobs]
    processes.import_in_one_thread(lambda: preflight.import_for(asked))
    fork = here.start_method != "spawn" and processes.may_fork()
    if here.start_method == "fork" and not fork:
        raise ConfigError(
            "hydra.launcher.start_method=fork: the libraries have started threads or opened a GPU in this process, and "
            "its forks would hang: set hydra.launcher.start_method=spawn."
        )
    check = preflight.check_jobs
    plan.check((lambda jobs: processes.in_a_fork(lambda: check(jobs))) if fork else check)
    say(columns([("job", "settings", "run directory"), *(_row(job) for job in plan.jobs)]))
    if not plan.jobs[0].config.stages:
        say(f"{len(plan.jobs)} jobs checked: nothing stands in the way, and stages=[] starts nothing")
        return [_returned(job, JobStatus.COMPLETED, None) for job in plan.jobs]
    plan = plan.register()
    if plan.reuse:
        take_over(plan)
    runner = Runner(plan, fork, slots, gpus, here.max_failures, here.timeout_min)
    with handled(runner.take):
        runner.run()
    if runner.trouble:
        raise RunError(
            f"The sweep was stopped, its jobs with their state saved where that was possible: {runner.trouble}. Type the "
            "same command again when that is mended."
        )
    return _ended(plan, runner)


def _row(job: Job) -> tuple[str, str, str]:
    return str(job.number), " ".join(job.overrides), str(job.root)


def _gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them. Asks the driver's files and no library."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name for name in said.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
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
        sys.exit(130 if runner.signals.count(signal.SIGINT) > 1 else SAVED)
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
            results.append(_returned(job, JobStatus.COMPLETED, record.value))
        else:
            cause = record.cause if record and record.cause else state
            results.append(_returned(job, JobStatus.FAILED, RunError(f"{job.label} failed: {cause}")))
    return results


def _returned(job: Job, status: JobStatus, value: Any) -> JobReturn:
    result = JobReturn(overrides=job.words, working_dir=str(job.root), status=status)
    result.return_value = value
    return result
