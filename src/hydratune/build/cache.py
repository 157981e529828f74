"""Folders of the cache: whole or absent, whoever is killed and whoever builds the same one at once."""

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

DAY = 86_400  # seconds


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """`target`, where it is not there made by `build(folder)` under another name and renamed when it is whole."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    for cut_off in target.parent.glob(f".{target.name}.*"):  # of a build that was killed; a living one is younger
        if time.time() - cut_off.stat().st_mtime > DAY:
            shutil.rmtree(cut_off, ignore_errors=True)
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
    return target
