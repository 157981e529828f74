"""A plan's way to its launcher, whose settings are those of its option in conf/hydra/launcher."""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from hydratune import pipeline, preflight
from hydratune.config.cluster import PACKAGE
from hydratune.config.schema import ConfigError
from hydratune.config.values import suggestion
from hydratune.run.console import say
from hydratune.run.file_systems import unshared_locks
from hydratune.run.table import columns
from hydratune.sweep import here, processes
from hydratune.sweep.here import Here
from hydratune.sweep.jobs import Plan
from hydratune.sweep.reuse import take_over
from hydratune.sweep.slurm import Slurm

KINDS: dict[str, type[Here] | type[Slurm]] = {"HereLauncher": Here, "SlurmLauncher": Slurm}


def settings_of(target: str, given: Mapping[str, Any]) -> Here | Slurm:
    """The launcher's settings, checked. Raises ConfigError."""
    kind = KINDS[target.rpartition(".")[2]]
    known = {f.name for f in fields(kind)}
    for key in given:
        if key not in known and not key.startswith("_"):
            cluster = ", and cluster= is for hydra/launcher=slurm_1gpu and its kin" if kind is Here else ""
            raise ConfigError(f"There is no hydra.launcher.{key}{suggestion(key, known)}{cluster}: leave it out.")
    plain: dict[str, Any] = {
        key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in given.items() if key in known
    }
    return kind(**plain)


def keys_of(saved: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """What `sweep resume` takes for a sweep's launcher: its settings, and of `words` those below a mapping of them."""
    known = [f.name for f in fields(KINDS[saved["_target_"].rpartition(".")[2]])]
    below = tuple(f"{PACKAGE}.{name}." for name in known if isinstance(saved.get(name), dict))
    return [*(f"{PACKAGE}.{name}" for name in known), *(w.partition("=")[0] for w in words if w.startswith(below))]


def settings_over(saved: Mapping[str, Any], typed: Mapping[str, Any]) -> Here | Slurm:
    """A sweep's settings with those typed over them. Raises ConfigError.

    Whether to wait is said anew each time: who submitted may have waited, and who resumes may not.
    """
    given = {key: value for key, value in saved.items() if key != "wait"}
    for key, value in typed.items():
        name, _, option = key.removeprefix(f"{PACKAGE}.").partition(".")
        if option and not isinstance(given.get(name), dict):
            raise ConfigError(f"{PACKAGE}.{name} holds options of sbatch, found {given.get(name)!r}.")
        given[name] = {**given[name], option: value} if option else value
    return settings_of(saved["_target_"], given)


def launch(
    plan: Plan, launcher: Here | Slurm, allow: Callable[[], None] | None = None, failures: int = 0
) -> list[JobReturn]:
    """Check every job, write the sweep down, and have the launcher do what is left of it.

    Of who resumes, `allow` takes back what was cancelled, once nothing stands in the way. `failures`: jobs of the same
    search that failed before. Returns what Hydra's sweepers get; of jobs that were only submitted, nothing.
    """
    root = plan.folder.root
    if plan.folder.is_cancelled() and allow is None:
        raise ConfigError(f"{root} was cancelled: type hydratune sweep resume {root} to go on.")
    # a caller that ignores it passes that on, and how a child of ours ends would then be lost
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    launcher.ready(plan)
    asked = [(job.config, pipeline.unfinished(job.config)) for job in plan.jobs]
    processes.import_in_one_thread(lambda: preflight.import_for(asked))
    plan.check(launcher.check)
    rows = [(str(job.number), " ".join(job.overrides), str(job.root)) for job in plan.jobs]
    say(columns([("job", "settings", "run directory"), *rows]))
    say(f"each job: {launcher.words}")
    if not plan.jobs[0].config.stages:
        say(f"{len(plan.jobs)} jobs checked: nothing stands in the way, and stages=[] starts nothing")
        return [here.returned_of(job, JobStatus.COMPLETED, None) for job in plan.jobs]
    if why := unshared_locks(root):
        say(f"locks in {root} are each machine's own ({why}): let one machine, or Slurm, start all jobs of this sweep")
    submitted = launcher.submitted(plan)
    if allow:
        allow()
    plan, kept = plan.register(submitted)
    if kept:
        if isinstance(launcher, Slurm):
            say(
                f"{len(kept)} of the jobs are at work or in Slurm's queue with other settings, which they keep: type the "
                "same command again when they have ended"
            )
        else:
            say(f"{len(kept)} of the jobs are at work with other settings: when they have ended, they go on with these")
    if plan.reuse:
        take_over(plan)
    return launcher.run(plan, failures)
