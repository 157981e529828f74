"""Folders of the cache: whole or absent, whoever is killed and whoever builds the same one at once."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

BEAT = 2.0  # seconds between two signs of life of a builder
SILENT = 60.0  # seconds without one, after which it is taken for dead
DAY = 86_400  # seconds


def build_once(target: Path, build: Callable[[Path], None], waiting: Callable[[str], None] | None = None) -> Path:
    """`target`, where it is not there made by `build(folder)` under another name and renamed when it is whole.

    One process builds, also on several machines over one file system, and the others wait for it; `waiting` is then
    told who it is. A lock is a file that only one process can create, since not every shared file system has another
    kind. Should two build after all, both make the same, and the first rename counts.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{target.name}.lock")
    said = False
    while not target.is_dir():
        with _locked(lock) as holder:
            if holder is None and not target.is_dir():
                _remove_cut_off(target)
                _build(target, build)
        if holder and waiting and not said:
            said = True
            waiting(holder)
    return target


@contextmanager
def one_at_a_time(lock: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Of all processes that come to the same `lock`, also on several machines over one file system, one is inside."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    said = False
    while True:
        with _locked(lock) as holder:
            if holder is None:
                yield
                return
        if waiting and not said:
            said = True
            waiting(holder)


@contextmanager
def _locked(lock: Path) -> Iterator[str | None]:
    """None where this process holds the lock inside the block; else who holds it, after a moment's wait."""
    me = f"{socket.gethostname()} {os.getpid()}"
    try:
        with os.fdopen(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "w") as file:
            file.write(me)
    except FileExistsError:
        holder = _wait_for(lock)
        yield holder
        return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(lock, ended), daemon=True)
    beating.start()
    try:
        yield None
    finally:
        ended.set()
        beating.join()
        if _read(lock) == me:
            lock.unlink(missing_ok=True)


def _beat(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        try:
            os.utime(lock)
        except OSError:
            return  # taken away: somebody took this process for dead


def _wait_for(lock: Path) -> str:
    """Wait while the holder lives; the lock of a dead one is taken away."""
    holder, beat, since = _read(lock), _time(lock), time.monotonic()
    while True:
        host, _, pid = holder.partition(" ")
        dead_here = host == socket.gethostname() and pid.isdigit() and not _lives(int(pid))
        # the machines' clocks may differ: what counts is that the time stamp moves
        if dead_here or time.monotonic() - since > SILENT:
            if _read(lock) == holder and _time(lock) == beat:
                lock.unlink(missing_ok=True)
            return holder
        time.sleep(0.05)
        now = _time(lock)
        if now != beat:
            return holder


def _lives(pid: int) -> bool:
    """Whether it is another process that runs here; what is of this one's number was left by an earlier one."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _time(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _build(target: Path, build: Callable[[Path], None]) -> None:
    building = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        build(building)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _remove_cut_off(target: Path) -> None:
    """What a build that was killed has left."""
    for folder in target.parent.glob(f".{target.name}.*.*"):
        host, _, pid = folder.name.removeprefix(f".{target.name}.").rpartition(".")
        dead_here = host == socket.gethostname() and pid.isdigit() and not _lives(int(pid))
        if dead_here or time.time() - folder.stat().st_mtime > DAY:
            shutil.rmtree(folder, ignore_errors=True)
