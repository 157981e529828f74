"""Which of the run's processes this is, from torchrun's variables or those of a Slurm step; and what rank 0 owes the rest."""

import importlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydratune.config.schema import ConfigError
from hydratune.run.layout import RunDir

TORCHS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# by these, accelerate would take the process for one of several even without torch's
MPIS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
PORTS = range(10_000, 30_000)  # below those that systems give to outgoing connections


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; of a run alone, the defaults."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    address: str = "127.0.0.1"  # of rank 0
    port: int = 0

    @property
    def variables(self) -> dict[str, str]:
        """The same as torch reads it."""
        values = (self.rank, self.world_size, self.local_rank, self.local_world_size, self.address, self.port)
        return dict(zip(TORCHS, map(str, values), strict=True))


ALONE = Ranks()


def take_ranks(environment: MutableMapping[str, str] = os.environ) -> Ranks:
    """Who this process is; it takes the variables away, so that all but training believe to be alone.

    A stage that rank 0 does would otherwise wait for the others, in any library that looks. Raises ConfigError.
    """
    try:
        found = _of_torch(environment) or _of_slurm(environment) or ALONE
        if not 0 <= found.rank < found.world_size or not 0 <= found.local_rank < found.local_world_size:
            raise ConfigError(
                f"Rank {found.rank} of {found.world_size}, here {found.local_rank} of {found.local_world_size}, is no "
                "process that there is: start the run by torchrun or srun, which set RANK and WORLD_SIZE."
            )
    finally:
        for name in (*TORCHS, *MPIS):
            environment.pop(name, None)
    return found if found.world_size > 1 else ALONE


def _of_torch(environment: MutableMapping[str, str]) -> Ranks | None:
    if "RANK" not in environment and environment.get("WORLD_SIZE", "1") == "1":
        return None
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in environment]
    if environment.get("WORLD_SIZE") != "1":
        missing = [name for name in TORCHS if name not in environment and name != "LOCAL_WORLD_SIZE"]
    if missing:
        there = ", ".join(f"{name}={environment[name]}" for name in TORCHS if name in environment)
        raise ConfigError(
            f"The environment has {there}, but no {' and no '.join(missing)}: start the run by torchrun, or unset them."
        )
    world_size = _number(environment, "WORLD_SIZE")
    return Ranks(
        _number(environment, "RANK"),
        world_size,
        _number(environment, "LOCAL_RANK", 0),
        _number(environment, "LOCAL_WORLD_SIZE", world_size),
        environment.get("MASTER_ADDR", "127.0.0.1"),
        _number(environment, "MASTER_PORT", 0),
    )


def _of_slurm(environment: MutableMapping[str, str]) -> Ranks | None:
    """A step of several tasks; the variables of a job outside a step say nothing of this process."""
    if "SLURM_PROCID" not in environment or environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    nodes = _first_numbers(environment.get("SLURM_STEP_TASKS_PER_NODE", environment["SLURM_STEP_NUM_TASKS"]))
    node = _number(environment, "SLURM_NODEID", 0)
    alone = environment.get("SLURM_STEP_NUM_NODES", "1") == "1"
    host = "127.0.0.1" if alone else _first_host(environment.get("SLURM_STEP_NODELIST", ""))
    # of two steps on one node, each has its own
    step = 64 * _number(environment, "SLURM_JOB_ID", 0) + _number(environment, "SLURM_STEP_ID", 0)
    return Ranks(
        _number(environment, "SLURM_PROCID"),
        _number(environment, "SLURM_STEP_NUM_TASKS"),
        _number(environment, "SLURM_LOCALID"),
        nodes[node] if node < len(nodes) else 0,
        environment.get("MASTER_ADDR") or host,  # a batch script may have got no answer
        _number(environment, "MASTER_PORT", PORTS[step % len(PORTS)]),
    )


def _number(environment: MutableMapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, None if default is None else str(default))
    if value is None or not value.isdecimal():
        raise ConfigError(f"{name}={value} in the environment is no number: start the run by torchrun or srun.")
    return int(value)


def _first_numbers(text: str) -> list[int]:
    """Slurm's "2(x3),1" -> [2, 2, 2, 1]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]


def _first_host(nodes: str) -> str:
    """Slurm's "gpu[03-05,9],login1" -> "gpu03"."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).partition(",")[0]


def together(me: Ranks) -> Any:
    """hydratune.build.together, which imports torch, connected to the other processes."""
    module = importlib.import_module("hydratune.build.together")
    module.connect(me.rank, me.world_size, me.address, me.port)
    return module


@contextmanager
def leading(me: Ranks) -> Iterator[None]:
    """On rank 0: whatever ends it, the others end with the same status."""
    status: Any = 1
    try:
        yield
        status = 0
    except SystemExit as end:
        status = end.code
        raise
    finally:
        if me.world_size > 1:
            # srun and torchrun send it to the rest when one has ended, and the status would be another
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            together(me).end(status if isinstance(status, int) else int(status is not None))


@dataclass(frozen=True)
class OthersRunDir(RunDir):
    """A run directory as ranks other than 0 have it: what they write is thrown away, but for the checkpoints' parts."""

    shared: RunDir = field(kw_only=True)

    @property
    def prepared(self) -> Path:
        """Which folder of the token cache the run trains on, JSON."""
        return self.shared.prepared

    @property
    def checkpoints(self) -> Path:
        """The trainer's own, to which each rank adds its random state."""
        return self.shared.checkpoints


@contextmanager
def others_run_dir(root: Path) -> Iterator[RunDir]:
    """The run directory for a rank other than 0, which leaves nothing behind."""
    scratch = Path(tempfile.mkdtemp(prefix="hydratune-"))
    try:
        yield OthersRunDir(scratch, shared=RunDir(root))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
