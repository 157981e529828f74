"""What the user sees. The libraries' own output goes to the run's log file."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_screen: TextIO = sys.stdout


def say(text: str = "") -> None:
    """A line on the user's screen, also while the libraries are quiet."""
    _write(text + "\n")


def on_terminal() -> bool:
    """Whether a person watches: then progress is a bar that overwrites itself, else plain lines."""
    return _screen.isatty()


def progress(done: int, total: int, text: str) -> None:
    """`done` of `total` steps."""
    if not on_terminal():
        say(f"  step {done}/{total}  {text}")
        return
    filled = 24 * done // total
    bar = "█" * filled + "░" * (24 - filled)
    _write(f"\r\x1b[2K  {bar} step {done}/{total}  {text}" + ("\n" if done == total else ""))


def _write(text: str) -> None:
    """A screen that went away (a closed pipe or terminal) ends no training."""
    global _screen
    try:
        _screen.write(text)
        _screen.flush()
    except OSError:
        _screen = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2, which C libraries write to as well, to `log`; `say` keeps the screen."""
    global _screen
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    _screen = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        os.close(kept[0])
        os.close(kept[1])
        _screen.close()
        _screen = sys.stdout
