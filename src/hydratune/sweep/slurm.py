"""hydra/launcher=slurm_…: a sweep as sbatch arrays, written into its folder, submitted and left."""

import json
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.utils import JobReturn

from hydratune import pipeline, preflight
from hydratune.config.schema import ConfigError
from hydratune.run.console import say
from hydratune.run.job import is_cancelled, look_at
from hydratune.run.layout import is_held, write_atomically
from hydratune.sweep import slurm_limits, slurm_queue
from hydratune.sweep.code import snapshot
from hydratune.sweep.here import returned
from hydratune.sweep.jobs import Checked, Job, Plan
from hydratune.sweep.slurm_script import script_text

POLL = 5.0  # seconds between two looks at the queue
ENDS_WITHIN = 90.0  # seconds in which a job that was cancelled has ended, with its state saved
# what the script itself decides
OURS = {
    "array": "hydra.launcher.array_parallelism", "output": "the sweep's folder", "error": "the sweep's folder",
    "open_mode": "hydratune", "dependency": "hydra.launcher.prepare", "kill_on_invalid_dep": "hydratune",
    "wrap": "hydratune", "parsable": "hydratune", "test_only": "stages=[]", "wait": "hydra.launcher.wait",
    "job_name": "name",
}  # fmt: skip


@dataclass(frozen=True)
class Slurm:
    """conf/hydra/launcher/slurm_1gpu.yaml and its kin."""

    sbatch: dict[str, Any] = field(default_factory=dict)  # options of sbatch by their long names
    array_parallelism: int | None = None
    max_requeues: int = 20
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    scratch: str | None = None
    container: list[str] = field(default_factory=list)
    python: str | None = None
    prepare: dict[str, Any] | None = None  # options of sbatch for a job that prepares first
    strict_code: bool = False
    wait: bool = False

    def __post_init__(self) -> None:
        for group in ("sbatch", "prepare"):
            if not isinstance(getattr(self, group) or {}, dict):
                raise ConfigError(f"hydra.launcher.{group} holds options of sbatch, found {getattr(self, group)!r}.")
            for key, value in (getattr(self, group) or {}).items():
                if owner := OURS.get(key.replace("-", "_")):
                    raise ConfigError(f"hydra.launcher.{group}.{key} belongs to {owner}: leave it out.")
                if not re.fullmatch(r"[a-z][a-z_-]+", key):
                    raise ConfigError(f"hydra.launcher.{group}.{key} is no option of sbatch by its long name.")
                if isinstance(value, list | dict) or "\n" in str(value):
                    raise ConfigError(f"hydra.launcher.{group}.{key} is one word or number, found {value!r}.")
        for name, least in (("array_parallelism", 1), ("max_requeues", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) and not (value is None and name == "array_parallelism"):
                raise ConfigError(f"hydra.launcher.{name} is a whole number, found {value!r}.")
            if isinstance(value, int) and value < least:
                raise ConfigError(f"hydra.launcher.{name} is {least} or more, found {value}.")
        for name in ("modules", "setup", "container"):
            value = getattr(self, name)
            if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
                raise ConfigError(f"hydra.launcher.{name} is a list of texts, found {value!r}.")
        for name in ("scratch", "python"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip() or set(value) & set('"\n')):
                raise ConfigError(f"hydra.launcher.{name} is null or a path, found {value!r}.")
        for name in ("strict_code", "wait"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"hydra.launcher.{name} is true or false, found {getattr(self, name)!r}.")

    def ready(self, plan: Plan) -> None:
        """Raises ConfigError where there is no Slurm, or where it refuses such jobs."""
        slurm_queue.check_there()
        for prepares in (False, True) if self.prepare is not None else (False,):
            options = _Part(plan.jobs[:1], prepares).options(self)
            said = slurm_queue.check_accepted(script_text(plan, 1, self, options, "check"))
            slurm_limits.check(options, said)

    def check(self, jobs: Checked) -> list[list[str]]:
        """What preflight says of each job wherever it runs."""
        return preflight.check_jobs(jobs, elsewhere=True)

    def run(self, plan: Plan) -> list[JobReturn]:
        """Submit what is left, and say how to follow it."""
        root = plan.folder.root
        with slurm_queue.one_submits(plan.folder) as lock:
            left = _left(plan)
            _submit(plan, _parts(left, self), self, lock)
        if left:
            name = shlex.quote(str(root))
            say(
                f"{len(left)} of {len(plan.jobs)} jobs submitted, in {root}\n"
                f"  hydratune sweep status {name}     states, nodes, why a job waits, the time left\n"
                f"  hydratune sweep logs {name}       what the jobs print\n"
                f"  hydratune sweep cancel {name}     ends them, each with its state saved"
            )
        else:
            say(f"{len(plan.jobs)} jobs: all done, or in Slurm's queue")
        return _waited_for(plan) if self.wait else []


@dataclass(frozen=True)
class _Part:
    """What one sbatch submits."""

    jobs: Sequence[Job]
    prepares: bool  # the first of the jobs, for all of them

    @property
    def tasks(self) -> int:
        return 1 if self.prepares else len(self.jobs)

    @property
    def lines(self) -> str:
        """Of each task the job and what it does; a preparation's others are those that wait for it."""
        stages = [["prepare"] if self.prepares else job.config.stages for job in self.jobs]
        return "".join(f"{job.number}\t{','.join(some)}\n" for job, some in zip(self.jobs, stages, strict=True))

    def options(self, slurm: Slurm) -> dict[str, Any]:
        return slurm.sbatch | (slurm.prepare or {}) if self.prepares else slurm.sbatch


def _left(plan: Plan) -> list[Job]:
    """Jobs that are neither done, nor cancelled, nor in the queue; those that are just ending are waited for."""
    deadline = time.monotonic() + ENDS_WITHIN
    while True:
        queue = slurm_queue.living(plan.folder)
        alive = {number for number, one in queue.items() if one.state != slurm_queue.ENDING}
        ending = [job for job in plan.jobs if job.number not in alive and (job.number in queue or is_held(job.root))]
        if not ending or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    gone = [job for job in plan.jobs if job.number not in alive and job not in ending and not is_cancelled(job.root)]
    return [job for job in gone if look_at(job.root)[1] != "done" or pipeline.unfinished(job.config)]


def _parts(jobs: Sequence[Job], slurm: Slurm) -> list[list[_Part]]:
    """Arrays as long as Slurm takes them; those that have the same rows and tokens after their preparation."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        wanted = slurm.prepare is not None and "prepare" in pipeline.unfinished(job.config)
        same = [vars(job.config.model), vars(job.config.data), job.config.trainer.max_length] if wanted else None
        groups.setdefault(json.dumps(same, default=str), []).append(job)
    limit = slurm_queue.largest_array()
    return [
        [_Part(group, prepares=True)] * (same != "null")
        + [_Part(group[first : first + limit], prepares=False) for first in range(0, len(group), limit)]
        for same, group in groups.items()
    ]


def _submit(plan: Plan, groups: Sequence[Sequence[_Part]], slurm: Slurm, lock: int) -> None:
    """Raises ConfigError with sbatch's words; what was submitted before that is listed with how to cancel it."""
    place = plan.folder.root.resolve() / "slurm"
    code = json.dumps(snapshot(), indent=2) + "\n" if groups else ""
    submitted: list[str] = []
    before = ""  # the array before, which this one waits for where one alone would not keep the number at a time
    for group in groups:
        prepared = ""
        for part in group:
            number = sum(1 for _ in place.glob("*.sh"))
            script = place / f"{number}{slurm_queue.PREPARE * part.prepares}.sh"
            write_atomically(script.with_suffix(".code"), code)
            write_atomically(script.with_suffix(".jobs"), part.lines)
            write_atomically(script, script_text(plan, part.tasks, slurm, part.options(slurm), script.stem))
            needs = [f"afterok:{prepared}"] * bool(prepared)
            needs += [f"afterany:{before}"] * bool(before and slurm.array_parallelism and not part.prepares)
            try:
                array = slurm_queue.sbatch(script, needs, lock)
            except ConfigError as error:
                for suffix in (".sh", ".jobs", ".code"):
                    script.with_suffix(suffix).unlink()
                ended = f"scancel {' '.join(submitted)} ends what was submitted before it."
                raise ConfigError(f"{error.sentences[0]} {ended if submitted else 'Nothing was submitted.'}") from None
            submitted.append(array)
            prepared, before = (array, before) if part.prepares else (prepared, array)
            what = "preparation" if part.prepares else "jobs"
            say(f"{what}: Slurm's job {array}, {part.tasks} task{'s' * (part.tasks > 1)}")


def _waited_for(plan: Plan) -> list[JobReturn]:
    """When no job is in the queue or at work; says of each how it is when that changes."""
    told: dict[int, str] = {}
    while True:
        queue = slurm_queue.living(plan.folder)
        for job in plan.jobs:
            (record, state), queued = look_at(job.root), queue.get(job.number)
            words = state if queued is None or state == "running" else f"{state}, {queued.state.lower()}"
            if told.get(job.number) != words:
                told[job.number] = words
                where = f" on {queued.reason}" if queued and queued.state == "RUNNING" else ""
                cause = f": {record.cause}" if record and record.cause and state == "failed" else ""
                say(f"{time.strftime('%H:%M:%S')} {job.label} {words}{where}{cause}")
        if not any(job.number in queue or is_held(job.root) for job in plan.jobs):
            return returned(plan)
        time.sleep(POLL)
