"""What Slurm's own commands are asked and say. Jobs that have ended are not asked for: sites forget them."""

import fcntl
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydratune.config.schema import ConfigError
from hydratune.sweep.folder import SweepDir

SECONDS = 60  # that a command of Slurm's may take
DEFAULT_ARRAY = 1001  # MaxArraySize where a site says nothing
PREPARE = "-prepare"  # at the end of the name of a script that prepares for others
ENDING = "COMPLETING"


@dataclass(frozen=True)
class Queued:
    """A task of an array of the sweep's in Slurm's queue."""

    number: int  # of the job
    prepares: bool  # and does no more for it
    task: str  # "123_4"
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits, or the node that it runs on
    left: str  # of its time limit

    @property
    def words(self) -> str:
        """For a person."""
        if self.state == "RUNNING":
            return f"on {self.reason}, {self.left} left of its time limit, Slurm's job {self.task}"
        return f"{self.state.lower()} ({self.reason}), Slurm's job {self.task}"


def check_there() -> None:
    """Raises ConfigError where there is no Slurm."""
    if not shutil.which("sbatch"):
        raise ConfigError(
            "There is no sbatch here: type this on a machine that submits to Slurm, or set hydra/launcher=here."
        )


def asked(command: Sequence[str], kept: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, pass_fds=kept
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{command[0]} doesn't answer: {error}.") from None


def _words(said: str) -> str:
    """sbatch's own, in a line."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip().rstrip(".") for line in said.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith("Try ")))


def check_accepted(script: str) -> str:
    """What sbatch says of when and where the script could begin; nothing of it is left.

    Raises ConfigError with sbatch's words where it would refuse it.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        done = asked(["sbatch", "--test-only", file.name])
    if done.returncode:
        raise ConfigError(f"Slurm refuses the jobs, and nothing was submitted: {_words(done.stderr)}.")
    return done.stderr


@contextmanager
def one_submits(folder: SweepDir) -> Iterator[int]:
    """Of all who submit jobs of the sweep, one is inside.

    Its sbatch has the same open file, and so is waited for where the process that called it was killed.
    """
    place = folder.root / "slurm"
    place.mkdir(exist_ok=True)
    with (place / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def sbatch(script: Path, dependencies: Sequence[str], lock: int) -> str:
    """Submit it; returns the array's number."""
    # one that can never begin would wait for ever
    options = [f"--dependency={','.join(dependencies)}", "--kill-on-invalid-dep=yes"] if dependencies else []
    done = asked(["sbatch", "--parsable", *options, str(script)], [lock])
    if done.returncode:
        raise ConfigError(f"Slurm refuses {script}: {_words(done.stderr)}.")
    return done.stdout.strip().partition(";")[0]


def largest_array() -> int:
    """Tasks that one array may have."""
    said = asked(["scontrol", "show", "config"]).stdout
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", said)
    return max(1, (int(found[1]) if found else DEFAULT_ARRAY) - 1)


def in_queue(folder: SweepDir) -> list[Queued]:
    """What Slurm has yet to run of the sweep, runs, or will run again. Nothing where there is no Slurm here.

    Slurm itself says which script a task is of, so that none is missed whose submission nobody lived to note.
    """
    place = folder.root.resolve() / "slurm"
    if not place.is_dir() or not shutil.which("squeue"):
        return []
    # one that Slurm has forgotten makes squeue fail where it is named: so all of the user's are asked for
    done = asked(["squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%R|%N|%L|%o"])
    if done.returncode:
        raise ConfigError(f"squeue says nothing of the jobs: {_words(done.stderr)}.")
    found, numbers = [], {}
    for line in done.stdout.splitlines():
        array, task, state, reason, nodes, left, command = line.strip().split("|", 6)
        script = Path(command)
        if script.parent != place or not task.isdecimal() or state == "COMPLETED":
            continue
        if script not in numbers:
            jobs = script.with_suffix(".jobs").read_text(encoding="utf-8").splitlines()
            numbers[script] = [int(job.partition("\t")[0]) for job in jobs]
        words = nodes if state == "RUNNING" else reason.strip("()")
        prepares = script.stem.endswith(PREPARE)
        found.append(Queued(numbers[script][int(task)], prepares, f"{array}_{task}", state, words, left))
    return found


def living(folder: SweepDir) -> dict[int, Queued]:
    """The jobs in the queue by their numbers, without preparations."""
    found = [one for one in in_queue(folder) if not one.prepares]
    # where one ends and has a successor, the successor
    return {one.number: one for one in sorted(found, key=lambda one: one.state != ENDING)}


def cancel(tasks: Sequence[str], at_work: Sequence[str]) -> None:
    """Those at work get SIGTERM, save their state and end; the others are taken out."""
    for options, names in (([], tasks), (["--signal=TERM"], at_work)):
        if names:
            done = asked(["scancel", *options, *names])
            if done.returncode:
                raise ConfigError(f"scancel: {_words(done.stderr)}.")
