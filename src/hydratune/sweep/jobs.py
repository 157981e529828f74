"""The jobs of a sweep: planned and checked, all of them, before the first starts."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from hydratune import pipeline
from hydratune.config import secrets
from hydratune.config.load import saved_form
from hydratune.config.rules import broken_rules
from hydratune.config.saved import check_code, make_absolute, read_saved
from hydratune.config.schema import Config, ConfigError, SweepConf
from hydratune.config.values import value_problems
from hydratune.sweep.composing import composed
from hydratune.sweep.folder import Asked, SweepDir, label
from hydratune.sweep.identity import extending, info_of, job_hash, key_of, swept_keys, whole_hash

Checked = Sequence[tuple[Config, list[str]]]  # what preflight.check_jobs takes


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    number: int
    hash: str
    overrides: list[str]  # those that differ between jobs
    words: list[str]  # all
    config: Config

    @property
    def label(self) -> str:
        return label(self.number, self.overrides)

    @property
    def asked(self) -> Asked:
        """For the list of jobs."""
        return Asked(self.hash, self.overrides, self.words, [str(stage) for stage in self.config.stages])

    @property
    def root(self) -> Path:
        """Its run directory."""
        return Path(str(self.config.run_dir))


@dataclass(frozen=True)
class Plan:
    """A sweep that is sound as far as its configuration shows. Nothing of it is on the disk yet."""

    folder: SweepDir
    jobs: list[Job]
    info: dict[str, Any]  # for sweep.json
    reuse: bool = False  # of sweep.reuse
    trusted: bool = True  # the settings are what was typed just now, and not what somebody's file says

    def check(self, check_jobs: Callable[[Checked], list[list[str]]]) -> None:
        """What the libraries know. Raises ConfigError with what is wrong with any job."""
        said: dict[str, list[Job]] = {}
        answers = check_jobs([(job.config, pipeline.unfinished(job.config)) for job in self.jobs])
        for job, sentences in zip(self.jobs, answers, strict=True):
            for sentence in sentences:
                said.setdefault(sentence, []).append(job)
        _refuse(said, len(self.jobs))

    def register(self, submitted: Collection[int] = ()) -> tuple["Plan", list[int]]:
        """Write it down; returns the same with the numbers that the jobs have got.

        And the numbers of those at work or `submitted` that keep other settings.
        """
        asked = [job.asked for job in self.jobs]

        def config_of(place: int, number: int) -> dict[str, Any]:
            return saved_form(self.jobs[place].config) | {"run_dir": str(self.folder.run_of(number))}

        numbers, kept = self.folder.register(asked, config_of, self.info, submitted)
        jobs = [_numbered(job, n, self.folder) for job, n in zip(self.jobs, numbers, strict=True)]
        return replace(self, jobs=jobs), kept


def planned(loader: ConfigLoader, master: DictConfig, overrides: Sequence[Sequence[str]]) -> Plan:
    """The jobs, each with its own run directory. Raises ConfigError with what is wrong with any of them.

    `master` is the configuration of the sweep itself, `overrides` the words of each job.
    """
    info = info_of(master, swept_keys(loader, master.hydra.overrides.task, overrides))
    grid = str(master.hydra.sweeper.get("_target_")).endswith(".GridSweeper")
    for key in () if grid else ("zip", "seeds"):
        if master.sweep[key] != getattr(SweepConf(), key):
            raise ConfigError(f"sweep.{key} is read by hydra/sweeper=grid alone: leave it out, or the other sweeper.")
    launcher = master.hydra.launcher
    if not grid and str(launcher.get("_target_")).endswith(".SlurmLauncher") and launcher.get("wait") is not True:
        raise ConfigError("a search needs what its jobs have found before it goes on: set hydra.launcher.wait=true.")
    configs = composed(loader, master, overrides)
    named = master.hydra.sweep.dir
    folder = SweepDir(_own_folder(configs, info["identity"]) if named == "auto" else Path(named))
    info = extending(info, folder)
    folder.refuse_another(info)
    swept, jobs = info["swept"], []
    for words, config in zip(overrides, configs, strict=True):
        if config.run_dir is not None:
            raise ConfigError(f"run_dir={config.run_dir} is one folder for all jobs: set hydra.sweep.dir instead.")
        config.sweep = SweepConf()  # which is no run's
        make_absolute(config)
        said = [secrets.redacted_override(w) for w in words if key_of(w).partition(".")[0] not in ("sweep", "cluster")]
        jobs.append(Job(-1, job_hash(config, swept), [w for w in said if key_of(w) in swept], said, config))
    jobs = _told_apart(jobs, swept)
    if grid:  # a search may choose the same again
        _refuse_twins(jobs)
    numbers = folder.numbers([job.asked for job in jobs])
    jobs = [_numbered(job, number, folder) for job, number in zip(jobs, numbers, strict=True)]
    _refuse_mistakes(jobs)
    return Plan(folder, jobs, info, reuse=bool(master.sweep.reuse))


def reopened(folder: SweepDir, numbers: Sequence[int], trust: bool) -> Plan:
    """The jobs of a sweep that is there, by their numbers (none: all), with the settings that it was started with."""
    info, jobs = folder.info, []
    for entry in folder.entries():
        if not numbers or entry.number in numbers:
            config = read_saved(folder.run_of(entry.number))
            if not trust:
                check_code(config, None, folder.run_of(entry.number))
            config.run_dir = str(folder.run_of(entry.number))
            config.stages = entry.stages or config.stages
            jobs.append(Job(entry.number, entry.hash, entry.overrides, entry.words, config))
    if not jobs:
        raise ConfigError(f"{folder.root} has no jobs: type the command that was to start them.")
    _refuse_mistakes(jobs)
    return Plan(folder, jobs, info, trusted=trust)


def _own_folder(configs: Sequence[Config], identity: str) -> Path:
    """Named as the jobs are, where all have one name; the order of their values, or one more, is to change nothing."""
    names = sorted({str(config.name) for config in configs})
    places = [Path(f"runs/{one}sweep-{identity}") for one in (*(f"{name}-" for name in names), "")]
    first = places[0] if len(names) == 1 else places[-1]
    return next((place for place in places if (place / "sweep.json").exists()), first)


def _numbered(job: Job, number: int, folder: SweepDir) -> Job:
    job.config.run_dir = str(folder.run_of(number))
    return replace(job, number=number)


def _told_apart(jobs: list[Job], swept: Sequence[str]) -> list[Job]:
    """With longer hashes where those of other settings are equal, as of two in 10,000 jobs they are once in 100 sweeps."""
    alike: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        alike[job.hash].append(job)
    longer: dict[int, str] = {}
    for some in alike.values():
        whole = [whole_hash(job.config, swept) for job in some] if len(some) > 1 else []
        if len(set(whole)) > 1:
            longer |= {id(job): f"{job.hash}{one[:24]}" for job, one in zip(some, whole, strict=True)}
    return [replace(job, hash=longer.get(id(job), job.hash)) for job in jobs]


def _refuse_twins(jobs: list[Job]) -> None:
    """Raises ConfigError where two jobs are the same run."""
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.hash, job)
        if other is not job:
            said = " and ".join(" ".join(one.overrides) or "(nothing)" for one in (other, job))
            raise ConfigError(f"Two jobs are the same run, {said}: leave one of them out.")


def _refuse_mistakes(jobs: list[Job]) -> None:
    """Raises ConfigError with what the configuration alone shows: no library needs to be imported."""
    said: dict[str, list[Job]] = {}
    for job in jobs:
        wrong = [f"{problem}." for problem in value_problems(job.config).values()]
        wrong += [f"{rule.sentence}." for rule in broken_rules(job.config)]
        wrong += _secrets(job)
        if not wrong:
            try:
                pipeline.check_inputs(job.config)
            except ConfigError as error:
                wrong = error.sentences
        for sentence in wrong:
            said.setdefault(sentence, []).append(job)
    _refuse(said, len(jobs))


def _refuse(said: dict[str, list[Job]], all_jobs: int) -> None:
    """Raises ConfigError where anything is said of any job."""
    if said:
        raise ConfigError([_of_jobs(sentence, those, all_jobs) for sentence, those in said.items()])


def _of_jobs(sentence: str, those: list[Job], all_jobs: int) -> str:
    if len(those) == all_jobs:
        return f"every job: {sentence}"
    if len(those) == 1:
        return f"{those[0].label}: {sentence}"
    return f"{those[0].label} and {len(those) - 1} more of {all_jobs}: {sentence}"


def _secrets(job: Job) -> list[str]:
    """Of settings that would be lost: a job reads its own from a file, and no secret is kept in one."""
    if secrets.REDACTED in json.dumps(saved_form(job.config)):
        return ["a secret can't reach the jobs of a sweep: leave it to the environment (HF_TOKEN, WANDB_API_KEY)."]
    return []
