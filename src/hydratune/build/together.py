"""The processes of one run: what rank 0 tells the others, and what all of them decide as one."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from hydratune.config.schema import RunError

POLL = 0.1  # seconds between two looks for what rank 0 says
FIRST = timedelta(minutes=10)  # for all to have started
LAST = 10.0  # seconds that rank 0 waits until the others have heard that it ends

_store: Any = None
_rank, _world_size = 0, 1
_told = 0  # messages of rank 0, those heard on the other ranks


def world_size() -> int:
    """Processes of the run."""
    return _world_size


def connect(rank: int, world_size: int, address: str, port: int) -> None:
    """Find the others, once. No collectives: those give up after minutes, and a merge may take hours."""
    global _store, _rank, _world_size
    if _store is not None or world_size == 1:
        return
    # torchrun has a store of its own, and several attempts may use it one after the other
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = distributed.TCPStore(
            address, port, is_master=rank == 0 and not hosted, timeout=FIRST, wait_for_workers=False, multi_tenant=True
        )
    except (distributed.DistError, RuntimeError, ValueError) as error:
        what = "can't listen at" if rank == 0 and not hosted else "finds no rank 0 at"
        said = str(error).partition("\n")[0]
        raise RunError(
            f"Rank {rank} {what} MASTER_ADDR={address}, MASTER_PORT={port} ({said}): set both to what all can reach."
        ) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _store = distributed.PrefixStore(f"hydratune/{attempt}", store)
    _rank, _world_size = rank, world_size


def tell(message: dict[str, Any]) -> None:
    """To all other ranks, in order; {"end": status} is the last."""
    global _told
    _store.set(f"said/{_told}", json.dumps(message))
    _told += 1


def hear(patience: float = float("inf")) -> dict[str, Any] | None:
    """The next message, for which there is no limit of time but `patience` in seconds; None after that.

    Where rank 0 is gone without a word, its end with status 1.
    """
    global _told
    begun, key = time.monotonic(), f"said/{_told}"
    try:
        while not _store.check([key]):  # not wait(), in which no signal is handled
            if time.monotonic() - begun >= patience:
                return None
            time.sleep(POLL)
        message: dict[str, Any] = json.loads(_store.get(key))
        _told += 1
        if "end" in message:
            _store.add("ended", 1)
    except distributed.DistError:
        return {"end": 1}
    return message


def end(status: int) -> None:
    """On rank 0: the others end with `status`, and the store, which may be in this process, lives until they know."""
    try:
        tell({"end": status})
        if distributed.is_initialized() and distributed.get_backend() == "gloo":
            distributed.destroy_process_group()  # those who wait in a collective are woken
        begun = time.monotonic()
        while _store.add("ended", 0) < _world_size - 1 and time.monotonic() - begun < LAST:
            time.sleep(POLL / 10)
    except distributed.DistError:
        pass


@contextmanager
def joined(variables: dict[str, str]) -> Iterator[None]:
    """Inside, the libraries see one training of several processes; `variables` are torch's."""
    if torch.cuda.is_available():
        # Slurm may show each task its own device alone, which then is number 0
        device = int(variables["LOCAL_RANK"]) if torch.cuda.device_count() > 1 else 0
        torch.cuda.set_device(device)
        variables = variables | {"LOCAL_RANK": str(device)}
    os.environ.update(variables)
    yield  # what fails inside ends the process: no state is put back in order
    for name in variables:
        os.environ.pop(name, None)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    from accelerate.state import AcceleratorState  # late: its import takes seconds, and a run alone has no use for it

    AcceleratorState._reset_state(reset_partial_state=True)
