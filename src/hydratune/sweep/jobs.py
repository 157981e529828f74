"""The jobs of a sweep: planned and checked, all of them, before the first starts."""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from hydratune import pipeline
from hydratune.config import secrets
from hydratune.config.load import FREE, config_hash, saved_form
from hydratune.config.rules import broken_rules
from hydratune.config.saved import check_code, make_absolute, read_saved, value_of
from hydratune.config.schema import Config, ConfigError, SweepConf
from hydratune.config.values import value_problems
from hydratune.sweep.composing import composed
from hydratune.sweep.folder import Asked, SweepDir, label

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
    typed = list(master.hydra.overrides.task)
    swept = list(dict.fromkeys(_key(word) for job in overrides for word in job if word not in typed))
    info = _info(master, typed, swept)
    grid = str(master.hydra.sweeper.get("_target_")).endswith(".GridSweeper")
    for key in () if grid else ("zip", "seeds"):
        if master.sweep[key] != getattr(SweepConf(), key):
            raise ConfigError(f"sweep.{key} is read by hydra/sweeper=grid alone: leave it out, or the other sweeper.")
    launcher = master.hydra.launcher
    if not grid and str(launcher.get("_target_")).endswith(".SlurmLauncher") and launcher.get("wait") is not True:
        raise ConfigError("a search needs what its jobs have found before it goes on: set hydra.launcher.wait=true.")
    configs = composed(loader, master, overrides)
    named = master.hydra.sweep.dir
    folder = SweepDir(Path(f"runs/{configs[0].name}-sweep-{info['identity']}" if named == "auto" else named))
    folder.refuse_another(info)
    jobs = []
    for words, config in zip(overrides, configs, strict=True):
        if config.run_dir is not None:
            raise ConfigError(f"run_dir={config.run_dir} is one folder for all jobs: set hydra.sweep.dir instead.")
        config.sweep = SweepConf()  # which is no run's
        make_absolute(config)
        said = [secrets.redacted_override(w) for w in words if _key(w).partition(".")[0] not in ("sweep", "cluster")]
        jobs.append(Job(-1, _hash(config, swept), [w for w in said if _key(w) in swept], said, config))
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


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _info(master: DictConfig, typed: list[str], swept: list[str]) -> dict[str, Any]:
    """What sweep.json holds. The identity is that of the command: other values of what is swept extend the sweep."""
    free = {*FREE, "hydra/launcher", "cluster"}
    # sweep=NAME is a file that may set anything; sweep.seeds and the like only say which jobs there are
    fixed = [w for w in typed if _key(w) not in swept and (_key(w) == "sweep" or _key(w).partition(".")[0] not in free)]
    place = [str(source.path) for source in master.hydra.runtime.config_sources if source.provider == "command-line"]
    said = json.dumps([sorted(fixed), sorted(swept), place, master.hydra.job.config_name])
    launcher = OmegaConf.to_container(master.hydra.launcher, resolve=True)
    return {
        "identity": hashlib.sha256(said.encode()).hexdigest()[:8],
        "typed": ["hydratune", *(secrets.redacted_override(word) for word in typed)],
        "config_dir": place[0] if place else None,
        "swept": swept,
        "direction": master.sweep.direction,
        "launcher": launcher,
    }


def _hash(config: Config, swept: list[str]) -> str:
    """That of what is trained, and with it what else is swept, such as a benchmark's settings."""
    free = {}
    for key in swept:
        if key.partition(".")[0] in FREE:
            value = value_of(config, key)
            free[key] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    if not free:
        return config_hash(config)
    said = json.dumps([config_hash(config), secrets.redacted(free)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def _numbered(job: Job, number: int, folder: SweepDir) -> Job:
    job.config.run_dir = str(folder.run_of(number))
    return replace(job, number=number)


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
