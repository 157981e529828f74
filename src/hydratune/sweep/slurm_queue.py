"""What Slurm's own commands are asked and say. Jobs that have ended are not asked for: sites forget them."""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydratune.config.schema import ConfigError
from hydratune.config.values import suggestion
from hydratune.sweep.folder import SweepDir

SECONDS = 60  # that a command of Slurm's may take
DEFAULT_ARRAY = 1001  # MaxArraySize where a site says nothing
PREPARE = "-prepare"  # at the end of the name of a script that prepares for others
ENDING = "COMPLETING"
DEFAULTS = ("account", "partition", "qos", "constraint", "reservation")  # such as SBATCH_ACCOUNT of a user's profile

Done = subprocess.CompletedProcess[str]


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
        reason = "" if self.reason == "None" else f" ({self.reason})"  # which Slurm has yet to look for
        return f"{self.state.lower()}{reason}, Slurm's job {self.task}"


def check_there() -> None:
    """Raises ConfigError where there is no Slurm."""
    if not shutil.which("sbatch"):
        raise ConfigError(
            "There is no sbatch here: type this on a machine that submits to Slurm, or set hydra/launcher=here."
        )


def asked(command: Sequence[str], kept: Sequence[int] = (), given: Collection[str] = ()) -> Done:
    """What a command of Slurm's answers. Raises ConfigError where it doesn't.

    Of the environment's defaults for sbatch some count, where the options `given` don't have them.
    """
    named = {f"SBATCH_{key.upper()}" for key in DEFAULTS if key not in given}
    # the rest is an allocation's that this is typed in, or changes what is asked and what is answered
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_"))
        or key in ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
        or key in named
    }
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
            pass_fds=kept,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{command[0]} doesn't answer: {error}.") from None


def _words(said: str) -> str:
    """sbatch's own, in a line; of an option that it doesn't know also the nearest that it does."""
    if found := re.search(r"unrecognized option '--([\w-]+)", said):
        known = re.findall(r"--([a-z-]+)", asked(["sbatch", "--help"]).stdout)
        said = re.sub(r"(unrecognized option '[^']*')", rf"\1{suggestion(found[1], known)}", said)
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip().rstrip(".") for line in said.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith("Try ")))


def check_accepted(script: str, given: Collection[str]) -> str:
    """What sbatch says of when and where the script could begin; nothing of it is left.

    Raises ConfigError with sbatch's words where it would refuse it.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        done = asked(["sbatch", "--test-only", file.name], given=given)
        if done.returncode and "allocation failure: " in done.stderr:
            # no node could take it now, such as while all are drained, or ever: which, sbatch itself tells of a later one
            done = asked(["sbatch", "--parsable", "--begin=now+1hour", file.name], given=given)
            if done.returncode == 0:
                asked(["scancel", number_of(done.stdout)])
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


def sbatch(script: Path, dependencies: Sequence[str], lock: int, given: Collection[str]) -> str:
    """Submit it; returns the array's number. Raises ConfigError; the jobs may be in the queue all the same."""
    # one that can never begin would wait for ever
    options = [f"--dependency={','.join(dependencies)}", "--kill-on-invalid-dep=yes"] if dependencies else []
    done = asked(["sbatch", "--parsable", *options, str(script)], [lock], given)
    if done.returncode:
        raise ConfigError(f"Slurm refuses {script}: {_words(done.stderr)}.")
    return number_of(done.stdout)


def number_of(said: str) -> str:
    """Of the job that sbatch has submitted."""
    return said.strip().partition(";")[0]


def largest_array() -> int:
    """Tasks that one array may have."""
    said = asked(["scontrol", "show", "config"]).stdout
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", said)
    most = re.search(r"max_array_tasks=(\d+)", said)
    limits = [(int(found[1]) if found else DEFAULT_ARRAY) - 1, *([int(most[1])] if most else [])]
    return max(1, min(limits))


def _listed() -> Iterator[tuple[Path, list[str]]]:
    """Of each of the user's tasks in the queue the script, and array, task, state, reason, nodes, time left."""
    # one that Slurm has forgotten makes squeue fail where it is named: so all are asked for
    done = asked(["squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%R|%N|%L|%o"])
    if done.returncode:
        raise ConfigError(f"squeue says nothing of the jobs: {_words(done.stderr)}.")
    for line in done.stdout.splitlines():
        *words, command = line.strip().split("|", 6)
        yield Path(command), words


def arrays_of(script: Path) -> list[str]:
    """Those in the queue that this script was submitted as."""
    return sorted({words[0] for path, words in _listed() if path == script})


def in_queue(folder: SweepDir) -> list[Queued]:
    """What Slurm has yet to run of the sweep, runs, or will run again. Nothing where there is no Slurm here.

    Slurm itself says which script a task is of, so that none is missed whose submission nobody lived to note.
    """
    place = folder.root.resolve() / "slurm"
    if not place.is_dir() or not shutil.which("squeue"):
        return []
    found, numbers = [], {}
    for script, (array, task, state, reason, nodes, left) in _listed():
        if script.parent != place or not task.isdecimal() or state == "COMPLETED":
            continue
        if script not in numbers:
            try:
                jobs = script.with_suffix(".jobs").read_text(encoding="utf-8").splitlines()
            except OSError:
                raise ConfigError(
                    f"Slurm has an array of this sweep, {array}, whose list {script.with_suffix('.jobs')} is gone: type scancel "
                    f"{array} to end it."
                ) from None
            numbers[script] = [int(job.partition("\t")[0]) for job in jobs]
        words = nodes if state == "RUNNING" else reason.strip("()")
        prepares = script.stem.endswith(PREPARE)
        found.append(Queued(numbers[script][int(task)], prepares, f"{array}_{task}", state, words, left))
    return found


def living(queue: Sequence[Queued]) -> dict[int, Queued]:
    """The jobs in the queue by their numbers, without preparations."""
    found = [one for one in queue if not one.prepares]
    # where one ends and has a successor, the successor
    return {one.number: one for one in sorted(found, key=lambda one: one.state != ENDING)}


def cancel(tasks: Sequence[str], at_work: Sequence[str]) -> None:
    """Those at work get SIGTERM, save their state and end; the others are taken out.

    Raises ConfigError, once all were asked, with what scancel says; of one that has just ended it says nothing.
    """
    said = []
    for options, names in ((["--signal=TERM"], at_work), ([], tasks)):
        if names:
            done = asked(["scancel", *options, *names])
            said += [words] if done.returncode and (words := _words(done.stderr)) else []
    if said:
        raise ConfigError(f"scancel: {'; '.join(said)}.")
