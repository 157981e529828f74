"""A sweep: its jobs composed and checked before the first starts, then one process each."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from hydratune import pipeline, preflight
from hydratune.config import secrets
from hydratune.config.load import config_hash, saved_form, to_config
from hydratune.config.rules import broken_rules
from hydratune.config.saved import begun, make_absolute, put
from hydratune.config.schema import Config, ConfigError
from hydratune.config.settings import group_options
from hydratune.config.values import converted, value_problems
from hydratune.run.console import say
from hydratune.run.layout import RunDir, write_atomically
from hydratune.run.signals import SAVED, handled
from hydratune.run.table import columns

FAILED = 3  # exit status of a sweep with failed jobs


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    number: int
    overrides: list[str]  # those that differ between jobs
    words: list[str]  # all
    config: Config

    @property
    def label(self) -> str:
        return f"job {self.number} ({' '.join(self.overrides)})"


def grid(loader: ConfigLoader, overrides: list[str]) -> list[list[str]]:
    """The overrides of each job: every combination of the values of sweeping overrides."""
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return jobs


def checked_jobs(loader: ConfigLoader, master: DictConfig, overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
    """The jobs, each with its own run directory. Raises ConfigError with what is wrong with any of them.

    Nothing is written. `master` is the configuration of the sweep itself.
    """
    shared = set.intersection(*(set(job) for job in overrides)) if len(overrides) > 1 else set()
    configs = _composed(loader, master, overrides)
    root = _root(master, configs)
    jobs = []
    for number, (words, config) in enumerate(zip(overrides, configs, strict=True), first):
        if config.run_dir is not None:
            raise ConfigError(f"run_dir={config.run_dir} is one folder for all jobs: set hydra.sweep.dir instead.")
        config.run_dir = str(root / str(number))
        make_absolute(config)
        said_words = [secrets.redacted_override(word) for word in words]
        jobs.append(Job(number, [word for word in said_words if word not in shared], said_words, config))
    said: dict[str, list[Job]] = {}
    later = []
    for job in jobs:
        wrong = [f"{problem}." for problem in value_problems(job.config).values()]
        wrong += [f"{rule.sentence}." for rule in broken_rules(job.config)]
        wrong += [*_other_settings(job), *_secrets(job)]
        if not wrong:
            try:
                pipeline.check_inputs(job.config)
                later.append(job)
            except ConfigError as error:
                wrong = error.sentences
        for sentence in wrong:
            said.setdefault(sentence, []).append(job)
    _refuse(said, len(jobs))  # what the configuration alone shows: no library needs to be imported
    answers = preflight.check_jobs([(job.config, pipeline.unfinished(job.config)) for job in later])
    for job, sentences in zip(later, answers, strict=True):
        for sentence in sentences:
            said.setdefault(sentence, []).append(job)
    _refuse(said, len(jobs))
    return jobs


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


def _other_settings(job: Job) -> list[str]:
    """A job's folder that holds a run of other settings."""
    assert job.config.run_dir
    other = begun(Path(job.config.run_dir), job.config)
    return [f"{job.config.run_dir} holds a run with other settings: set another hydra.sweep.dir."] if other else []


def _secrets(job: Job) -> list[str]:
    """Of settings that would be lost: a job reads its own from a file, and no secret is kept in one."""
    if secrets.REDACTED in json.dumps(saved_form(job.config)):
        return ["a secret can't reach the jobs of a sweep: leave it to the environment (HF_TOKEN, WANDB_API_KEY)."]
    return []


def _composed(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Config]:
    """The configuration of each job.

    Hydra composes each choice of group options once; single values are then put on the typed result, which is what
    Hydra would do with them, at a hundredth of the time. Where interpolations may depend on them, Hydra does it all.
    """
    parser = OverridesParser.create(config_loader=loader)
    bases: dict[tuple[str, ...], tuple[Config, bool]] = {}
    configs = []
    for words in jobs:
        parsed = [parser.parse_override(word) for word in words]
        choices = tuple(w for w, o in zip(words, parsed, strict=True) if group_options(loader, o.key_or_group))
        values = [o for w, o in zip(words, parsed, strict=True) if w not in choices]
        if choices not in bases:
            composed = loader.load_sweep_config(master, list(choices))
            plain = str(OmegaConf.to_container(_without_hydra(composed), resolve=False))
            bases[choices] = to_config(composed), "${" in plain
        base, interpolated = bases[choices]
        if interpolated or any("${" in str(o.value()) or o.is_delete() or isinstance(o.value(), dict) for o in values):
            configs.append(to_config(loader.load_sweep_config(master, list(words))))
        else:
            configs.append(_with_values(deepcopy(base), values))
    return configs


def _without_hydra(composed: DictConfig) -> DictConfig:
    kept = {key: composed._get_node(key) for key in composed if key != "hydra"}
    return OmegaConf.create(kept)


def _with_values(config: Config, values: list[Override]) -> Config:
    for override in values:
        put(config, override.key_or_group, converted(override.key_or_group, override.value()))
    return config


def _root(master: DictConfig, configs: list[Config]) -> Path:
    """The sweep's folder, the same for the same command."""
    named = master.hydra.sweep.dir
    if named != "auto":
        return Path(named)
    said = ",".join(config_hash(config) for config in configs)  # as each run's own: without stages, benchmark, ...
    return Path("runs") / f"{configs[0].name}-sweep-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def run_here(jobs: list[Job]) -> list[JobReturn]:
    """Run the jobs one after another, each in its own process. Exits with 3 where one failed, 75 when stopped."""
    say(columns([("job", "settings", "run directory"), *(_row(job) for job in jobs)]))
    if not jobs[0].config.stages:
        say(f"{len(jobs)} jobs checked: nothing stands in the way, and stages=[] starts nothing")
        return [_returned(job, JobStatus.COMPLETED, None) for job in jobs]
    runner = _Runner()
    with handled(runner.take):
        results = [runner.run(job) for job in jobs]
    failed = [job for job, result in zip(jobs, results, strict=True) if result.status == JobStatus.FAILED]
    if failed:
        say(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(job.label for job in failed)}")
        sys.exit(FAILED)
    return results


def _row(job: Job) -> tuple[str, str, str]:
    return str(job.number), " ".join(job.overrides), str(job.config.run_dir)


class _Runner:
    """Runs jobs; a signal that asks to stop goes to the job at work, and no other begins."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.signals: list[int] = []

    def take(self, number: int, _frame: FrameType | None) -> None:
        self.signals.append(number)
        if self.process is not None:
            self.process.send_signal(number)

    def run(self, job: Job) -> JobReturn:
        self._stop_if_asked(SAVED)
        run_dir = RunDir(Path(str(job.config.run_dir)))
        say(f"\n{job.label}")
        text = yaml.safe_dump(saved_form(job.config), sort_keys=False, allow_unicode=True)
        write_atomically(run_dir.config, text)
        if not run_dir.overrides.is_file():
            write_atomically(run_dir.overrides, yaml.safe_dump(job.words))
        self.process = subprocess.Popen(_command(job, run_dir.root), start_new_session=True)
        if self.signals:  # one that came before there was a process to take it
            self.process.send_signal(self.signals[-1])
        status = self.process.wait()
        self._stop_if_asked(status if status in (SAVED, 130) else SAVED)
        if status in (SAVED, 130):
            sys.exit(status)
        if status:
            return _returned(job, JobStatus.FAILED, RuntimeError(f"{job.label} ended with {status}"))
        metrics = json.loads(run_dir.metrics.read_text()) if run_dir.metrics.is_file() else {}
        return _returned(job, JobStatus.COMPLETED, metrics.get("train/loss"))

    def _stop_if_asked(self, status: int) -> None:
        if self.signals:
            sys.exit(status)


def _command(job: Job, root: Path) -> list[str]:
    """Trusted, for this process has just written what the user's own command line says.

    -P, so that a file of the user's in the working directory hides no library.
    """
    quoted = str(root).replace("\\", "\\\\").replace("'", "\\'")
    stages = f"stages=[{','.join(job.config.stages)}]"
    return [sys.executable, "-P", "-m", "hydratune", f"run_dir='{quoted}'", stages, "trust=true"]


def _returned(job: Job, status: JobStatus, value: Any) -> JobReturn:
    result = JobReturn(overrides=job.overrides, working_dir=job.config.run_dir, status=status)
    result.return_value = value
    return result
