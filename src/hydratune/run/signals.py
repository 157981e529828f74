"""The signals that ask a run to stop: of a scheduler, of an administrator, of Ctrl-C."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from hydratune.run.console import say

ASKED_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SAVED = 75  # exit status: stopped with the state saved, the same command goes on


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """`handler` takes the signals that ask to stop; before and after, whoever took them before."""
    before = {number: signal.signal(number, handler) for number in ASKED_TO_STOP}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


_before_stop: list[Callable[[], None]] = []


@contextmanager
def before_stop(call: Callable[[], None]) -> Iterator[None]:
    """`call` is what `stop` does last; it may come in the middle of anything."""
    _before_stop.append(call)
    try:
        yield
    finally:
        _before_stop.remove(call)


def stop(number: int, _frame: FrameType | None) -> None:
    """For all but training steps, which save first: what is finished has its receipt, the rest begins again."""
    say(f"  {signal.Signals(number).name}: stopped; the same command goes on")
    for call in _before_stop:
        with suppress(OSError):
            call()
    os._exit(SAVED)  # an exception would pass through a library that is being imported, and crash there
