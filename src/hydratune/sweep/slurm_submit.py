"""Jobs as sbatch arrays, written into the sweep's folder and submitted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydratune import pipeline
from hydratune.config.schema import ConfigError
from hydratune.run.console import say
from hydratune.run.layout import RunDir, write_atomically
from hydratune.sweep import slurm_queue
from hydratune.sweep.code import snapshot
from hydratune.sweep.folder import SweepDir
from hydratune.sweep.jobs import Job, Plan
from hydratune.sweep.slurm_script import script_text

if TYPE_CHECKING:
    from hydratune.sweep.slurm import Slurm


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


def submit(plan: Plan, jobs: Sequence[Job], slurm: "Slurm", lock: int) -> None:
    """Raises ConfigError with sbatch's words; what was submitted before that is listed with how to cancel it."""
    place = plan.folder.root.resolve() / "slurm"
    code = json.dumps(snapshot(keep_in=place), indent=2) + "\n" if jobs else ""
    submitted: list[str] = []
    # the array before, which this one waits for where one alone would not keep the number at a time
    before = _newest_array(plan.folder) if slurm.array_parallelism else ""
    for job in jobs:
        RunDir(job.root).deaths.unlink(missing_ok=True)  # who submits anew may have given it more memory
    for group in _parts(jobs, slurm):
        prepared = ""
        for part in group:
            options = slurm.options(part.prepares)
            script = place / f"{_next_number(place)}{slurm_queue.PREPARE * part.prepares}.sh"
            write_atomically(script.with_suffix(".code"), code)
            write_atomically(script.with_suffix(".jobs"), part.lines)
            write_atomically(script, script_text(plan, part.tasks, slurm, options, script.stem))
            needs = [f"afterok:{prepared}"] * bool(prepared)
            needs += [f"afterany:{before}"] * bool(before and not part.prepares)
            try:
                array = slurm_queue.sbatch(script, needs, lock, options)
            except ConfigError as error:
                raise ConfigError(_half(error.sentences[0], script, submitted)) from None
            submitted.append(array)
            if part.prepares:
                prepared = array
            elif slurm.array_parallelism:
                before = array
            what = "preparation" if part.prepares else "jobs"
            say(f"{what}: Slurm's job {array}, {part.tasks} task{'s' * (part.tasks > 1)}")


def _parts(jobs: Sequence[Job], slurm: "Slurm") -> list[list[_Part]]:
    """Arrays as long as Slurm takes them; those that have the same rows and tokens after their preparation."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        wanted = slurm.prepare is not None and "prepare" in pipeline.unfinished(job.config)
        same = [vars(job.config.model), vars(job.config.data), job.config.trainer.max_length] if wanted else None
        groups.setdefault(json.dumps(same, default=str), []).append(job)
    limit = slurm_queue.largest_array() if jobs else 1
    return [
        [_Part(group, prepares=True)] * (same != "null")
        + [_Part(group[first : first + limit], prepares=False) for first in range(0, len(group), limit)]
        for same, group in groups.items()
    ]


def _next_number(place: Path) -> int:
    """Of a script, which none has had before: Slurm may know one whose files are gone."""
    known = (path.stem.removesuffix(slurm_queue.PREPARE) for path in place.glob("*.sh"))
    return 1 + max((int(name) for name in known if name.isdecimal()), default=-1)


def _newest_array(folder: SweepDir) -> str:
    """Of the sweep's in the queue; empty where none is."""
    arrays = {one.task.partition("_")[0] for one in slurm_queue.in_queue(folder) if not one.prepares}
    return max(arrays, key=int, default="")


def _half(said: str, script: Path, submitted: Sequence[str]) -> str:
    """The sentence for a submission that sbatch didn't end well. An sbatch that timed out may have submitted all the same."""
    try:
        these = slurm_queue.arrays_of(script)
    except ConfigError:
        return f"{said} Whether it was submitted, Slurm doesn't say: look at squeue, and type the same command later."
    if not these:
        for suffix in (".sh", ".jobs", ".code"):
            script.with_suffix(suffix).unlink()
    known = " ".join([*submitted, *these])
    return f"{said} {f'scancel {known} ends what was submitted.' if known else 'Nothing was submitted.'}"
