"""What the user sees. The libraries' own output goes to the run's log file."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS_A_LINE = 15  # of progress, on a screen that is no terminal

_shown = 0.0  # when such a line was last written, monotonic
_screen = 1  # file descriptor; written to without a buffer, since a signal's handler may speak at any moment
_bar_open = False  # whether the last line on the screen is a bar that has not ended


def say(text: str = "") -> None:
    """A line on the user's screen, also while the libraries are quiet."""
    end_bar()
    _write(text + "\n")


def show(text: str) -> None:
    """A part of a line, as it comes."""
    _write(text)


def end_bar() -> None:
    """What comes next begins on a line of its own."""
    global _bar_open
    if _bar_open:
        _bar_open = False
        _write("\n")


def on_terminal() -> bool:
    """Whether a person watches: then progress is a bar that overwrites itself, else plain lines."""
    return os.isatty(_screen)


def progress(done: int, total: int, text: str) -> None:
    """`done` of `total` steps: a bar on a terminal, else a line now and then, and for the last step."""
    global _bar_open, _shown
    if not on_terminal():
        if done == total or time.monotonic() - _shown >= SECONDS_A_LINE:
            _shown = time.monotonic()
            say(f"  step {done}/{total}  {text}")
        return
    filled = 24 * done // total
    line = f"  {'█' * filled}{'░' * (24 - filled)} step {done}/{total}  {text}"
    _bar_open = True
    # a line that is wider than the terminal would leave its upper half behind at each step
    _write(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}")


def _write(text: str) -> None:
    """A screen that went away (a closed pipe or terminal) ends no training."""
    global _screen
    left = text.encode(errors="replace")
    try:
        while left:
            left = left[os.write(_screen, left) :]
    except OSError:
        _screen = os.open(os.devnull, os.O_WRONLY)  # for the rest of the process


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2, which C libraries write to as well, to `log`; `say` keeps the screen."""
    global _screen
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    _screen = kept[0]
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        end_bar()
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        if _screen == kept[0]:  # else it went away
            _screen = 1
        os.close(kept[0])
        os.close(kept[1])
