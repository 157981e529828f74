"""A run of several processes: rank 0 composes, checks, writes and speaks; the others join the stages that all do."""

import importlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from hydratune.config.load import to_config
from hydratune.config.schema import Config, ConfigError, RunError
from hydratune.preflight_hub import as_prefetched, settle_hub
from hydratune.run.console import quiet
from hydratune.run.layout import RunDir
from hydratune.run.ranks import Ranks, others_run_dir, together
from hydratune.run.signals import handled, stop

SHARED = ("train",)  # stages of all ranks; the others wait while rank 0 does the rest
PATIENCE = 20.0  # seconds for rank 0 to say the mistake that this rank has found too


@contextmanager
def shared(stage: str, config: Config, run_dir: RunDir, hardware: Any, me: Ranks) -> Iterator[None]:
    """On rank 0: have the others do `stage` as well, where it is one of theirs."""
    if me.world_size == 1 or stage not in SHARED:
        yield
        return
    others = together(me)
    settled = asdict(config) | {"run_dir": str(run_dir.root)}
    others.tell({"stage": stage, "config": settled, "hardware": asdict(hardware)})
    with others.joined(me.variables):
        yield


def follow(me: Ranks) -> NoReturn:
    """On the other ranks: what rank 0 asks for, until it ends; then this one does too, with the same exit status."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else C++ stack traces where rank 0 is killed
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the screen is rank 0's
    with handled(stop):
        os._exit(_follow(me, together(me)))  # at once, before the SIGTERM that ranks.leading tells of


def _follow(me: Ranks, others: Any) -> int:
    while "end" not in (message := others.hear()):
        try:
            _do(message, me, others)
        except Exception as error:
            expected = isinstance(error, ConfigError | RunError)
            last = others.hear(PATIENCE if expected else 0.0)
            if last and "end" in last:  # rank 0 has said the same, or its end was what failed here
                return int(last["end"])
            if expected:
                raise RunError(f"Rank {me.rank} on {platform.node()}: {error}") from None
            raise
        except SystemExit:  # a signal, upon which all have saved; rank 0 may still be writing
            pass
    return int(message["end"])


def _do(message: dict[str, Any], me: Ranks, others: Any) -> None:
    stage = message["stage"]
    config = to_config(message["config"])
    settle_hub([(config, [stage])])
    config = as_prefetched(config)
    assert config.run_dir
    with others_run_dir(Path(config.run_dir)) as run_dir, quiet(Path(os.devnull)):
        hardware = importlib.import_module("hydratune.build.hardware").resolve(config)
        theirs = message["hardware"]
        differing = [
            f"{key}={value}, on rank 0 {theirs[key]}" for key, value in asdict(hardware).items() if value != theirs[key]
        ]
        if differing:
            raise RunError(f"This machine is another one than that of rank 0: {'; '.join(differing)}.")
        with others.joined(me.variables):
            importlib.import_module(f"hydratune.stages.{stage}").run(config, run_dir, hardware)


def check_ranks(config: Config, stages: list[str], me: Ranks) -> None:
    """Raises ConfigError where the run's checkpoints are of another number of processes, which decides its batches."""
    found = list(Path(config.run_dir or "").glob("checkpoints/checkpoint-*/rng_state*.pth"))
    numbers = [int(path.stem.rpartition("_")[2]) for path in found if path.stem != "rng_state"]
    before = max(numbers) + 1 if numbers else 1
    if found and before != me.world_size and set(stages) & set(SHARED):
        raise ConfigError(
            f"{config.run_dir} was trained by {before} process{'es' * (before > 1)} up to its checkpoint, and here are {me.world_size}: "
            f"start {before}, or take another run_dir."
        )
