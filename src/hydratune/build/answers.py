"""What a model has answered, kept in the cache by the question: never asked twice, and never lost when a run is killed."""

import json
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from hydratune.build.cache import one_at_a_time


def key_of(question: Any) -> str:
    """32 hexadecimal digits over what is JSON, or made of tuples of it."""
    return xxh3_128(json.dumps(question, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()


class Answers:
    """A folder for one model and one way of computing it: a line for each answer, a file for each process that gave some.

    No two processes write one file, so that it holds on any file system that several machines share. A line that a kill
    has cut is no answer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, Any] = {}
        self._read: dict[str, int] = {}  # file -> bytes that were read
        self.update()

    def update(self) -> None:
        """Take in what other processes have added."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path.name, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written, or cut off
                    self._read[path.name] = self._read.get(path.name, 0) + len(line)
                    try:
                        key, answer = json.loads(line)
                    except (ValueError, TypeError):
                        continue
                    self.known[key] = answer

    def add(self, found: dict[str, Any]) -> None:
        """Keep the answers, on the disk before this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"
        lines = "".join(json.dumps([key, answer]) + "\n" for key, answer in found.items()).encode()
        with path.open("ab") as file:
            if file.tell() and _is_cut(path):  # by an earlier process of this number
                file.write(b"\n")
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.known |= found

    def alone(self, keys: Sequence[str], waiting: Callable[[str], None]) -> AbstractContextManager[None]:
        """Inside, no other process answers these same questions."""
        return one_at_a_time(self.folder / f".{key_of(sorted(keys))[:16]}.lock", waiting)


def _is_cut(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
