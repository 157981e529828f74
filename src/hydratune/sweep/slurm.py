"""hydra/launcher=slurm_…: a sweep as sbatch arrays, written into its folder, submitted and left."""

import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from shutil import get_terminal_size
from typing import Any

from hydra.core.utils import JobReturn

from hydratune import pipeline, preflight
from hydratune.config.schema import ConfigError
from hydratune.run.console import on_terminal, say, show
from hydratune.run.job import is_cancelled, look_at
from hydratune.run.layout import is_held
from hydratune.sweep import slurm_limits, slurm_queue
from hydratune.sweep.here import returned
from hydratune.sweep.jobs import Checked, Job, Plan
from hydratune.sweep.slurm_script import option_words, script_text
from hydratune.sweep.slurm_submit import submit
from hydratune.sweep.status import status_lines

POLL = 5.0  # seconds between two looks at the queue
ENDS_WITHIN = 90.0  # seconds in which a job that was cancelled has ended, with its state saved
# what the script itself decides
OURS = {
    "array": "hydra.launcher.array_parallelism", "output": "the sweep's folder", "error": "the sweep's folder",
    "open_mode": "hydratune", "dependency": "hydra.launcher.prepare", "kill_on_invalid_dep": "hydratune",
    "wrap": "hydratune", "parsable": "hydratune", "test_only": "stages=[]", "wait": "hydra.launcher.wait",
    "job_name": "name", "clusters": "the machine that this is typed on", "cluster": "the machine that this is typed on",
}  # fmt: skip
ONE_PROCESS = {"nodes": 1, "ntasks": None, "ntasks_per_node": 1}


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
                if not isinstance(key, str) or not re.fullmatch(r"[a-z][a-z_-]+", key):
                    raise ConfigError(f"hydra.launcher.{group}.{key} is no option of sbatch by its long name.")
                if owner := OURS.get(key.replace("-", "_")):
                    raise ConfigError(f"hydra.launcher.{group}.{key} belongs to {owner}: leave it out.")
                if key == "signal" and "B" in str(value).upper().rpartition(":")[0]:
                    raise ConfigError(
                        f"hydra.launcher.{group}.signal={value} is for the batch shell alone, and would end the job there: set "
                        f"it to {str(value).rpartition(':')[2]}."
                    )
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
            if value is not None and (not isinstance(value, str) or not value.strip() or set(value) & set('"\n\\')):
                raise ConfigError(f"hydra.launcher.{name} is null or a path, found {value!r}.")
        for name in ("strict_code", "wait"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"hydra.launcher.{name} is true or false, found {getattr(self, name)!r}.")

    def options(self, prepares: bool) -> dict[str, Any]:
        """Of sbatch, those that say something."""
        merged = {key.replace("-", "_"): value for key, value in self.sbatch.items()}
        if prepares:  # which is one process, without a GPU
            merged = {key: value for key, value in merged.items() if "gpu" not in key} | ONE_PROCESS
            kept = [word for word in str(merged.get("gres") or "").split(",") if word and not word.startswith("gpu")]
            merged["gres"] = ",".join(kept) or None
            merged |= {key.replace("-", "_"): value for key, value in (self.prepare or {}).items()}
        return {key: value for key, value in merged.items() if value is not None}

    def ready(self, plan: Plan) -> None:
        """Raises ConfigError where there is no Slurm, or where it refuses such jobs."""
        slurm_queue.check_there()
        if set(str(root := plan.folder.root.resolve())) & set("\\\n"):
            raise ConfigError(f"Slurm writes no files below {str(root)!r}: set a hydra.sweep.dir without a backslash.")
        for prepares in (False, True) if self.prepare is not None else (False,):
            options = self.options(prepares)
            said = slurm_queue.check_accepted(script_text(plan, 1, self, options, "check"), options)
            if doubt := slurm_limits.check(options, said):
                say(doubt)

    @property
    def words(self) -> str:
        """What a job gets, for a person."""
        return shlex.join(["sbatch", *option_words(self.options(prepares=False))])

    def check(self, jobs: Checked) -> list[list[str]]:
        """What preflight says of each job wherever it runs."""
        return preflight.check_jobs(jobs, elsewhere=True)

    def submitted(self, plan: Plan) -> set[int]:
        """Jobs that Slurm has yet to start, or runs."""
        queue = slurm_queue.living(slurm_queue.in_queue(plan.folder))
        return {number for number, one in queue.items() if one.state != slurm_queue.ENDING}

    def run(self, plan: Plan, failures: int) -> list[JobReturn]:
        """Submit what is left, and say how to follow it. `failures` are of no matter: Slurm stops no job for another."""
        root = plan.folder.root
        with slurm_queue.one_submits(plan.folder) as lock:
            left, held = _left(plan)
            submit(plan, left, self, lock)
        for job in held:
            say(f"{job.label}: not submitted, since a process holds {job.root}/.lock, on a machine that may have died")
        if left:
            name = shlex.quote(str(root))
            say(
                f"{len(left)} of {len(plan.jobs)} jobs submitted, in {root}\n"
                f"  hydratune sweep status {name}     states, nodes, why a job waits, the time left\n"
                f"  hydratune sweep logs {name}       what the jobs print\n"
                f"  hydratune sweep cancel {name}     ends them, each with its state saved"
            )
        elif not held:
            say(f"{len(plan.jobs)} jobs: all done, cancelled, or in Slurm's queue")
        return _waited_for(plan) if self.wait else []


def _left(plan: Plan) -> tuple[list[Job], list[Job]]:
    """Jobs that are neither done, nor cancelled, nor in the queue; those that are just ending are waited for.

    The second are those that a process has that is no job of Slurm's.
    """
    deadline = time.monotonic() + ENDS_WITHIN
    while True:
        queue = slurm_queue.living(slurm_queue.in_queue(plan.folder))
        alive = {number for number, one in queue.items() if one.state != slurm_queue.ENDING}
        ending = [job for job in plan.jobs if job.number not in alive and (job.number in queue or is_held(job.root))]
        if not ending or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    jobs = {job.number: job for job in plan.jobs}.values()  # a search may choose the same twice
    gone = [job for job in jobs if job.number not in alive and job not in ending and not is_cancelled(job.root)]
    left = [job for job in gone if look_at(job.root)[1] != "done" or pipeline.unfinished(job.config)]
    return left, [job for job in ending if job.number not in queue]


def _waited_for(plan: Plan) -> list[JobReturn]:
    """When no job is in the queue or at work. A terminal has a table that changes, a file a line of each change."""
    say(
        f"waiting for the jobs, which need nobody: Ctrl-C leaves them to Slurm, hydratune sweep cancel {plan.folder.root}"
    )
    told: dict[int, str] = {}
    trouble, shown = "", 0  # lines of the table
    while True:
        said = trouble
        try:
            queue, trouble = slurm_queue.living(slurm_queue.in_queue(plan.folder)), ""
        except ConfigError as error:  # such as a controller that is started anew
            queue, trouble = {}, error.sentences[0]
        if on_terminal():
            width = get_terminal_size().columns - 1
            lines = [line[:width] for line in status_lines(plan.folder)]
            show(f"\x1b[{shown}F\x1b[J" * (shown > 0) + "\n".join(lines) + "\n")
            shown = len(lines)
        elif trouble:
            if trouble != said:
                say(trouble)
        else:
            _tell_changes(plan, queue, told)
        if not trouble and not any(job.number in queue or is_held(job.root) for job in plan.jobs):
            return returned(plan)
        time.sleep(POLL)


def _tell_changes(plan: Plan, queue: Mapping[int, slurm_queue.Queued], told: dict[int, str]) -> None:
    """Say of each job how it is, where that is not what was `told`."""
    for job in plan.jobs:
        (record, state), queued = look_at(job.root), queue.get(job.number)
        words = state if queued is None or state == "running" else f"{state}, {queued.state.lower()}"
        if told.get(job.number) != words:
            told[job.number] = words
            where = f" on {queued.reason}" if queued and queued.state == "RUNNING" else ""
            cause = f": {record.cause}" if record and record.cause and state == "failed" else ""
            say(f"{time.strftime('%H:%M:%S')} {job.label} {words}{where}{cause}")
