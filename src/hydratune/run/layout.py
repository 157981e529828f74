"""The run directory: every path by name, and files written whole or not at all."""

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydratune.config.schema import RunError


def write_atomically(path: Path, text: str) -> None:
    """Temporary name, fsync, rename: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """As write_atomically, for a JSON value; numpy scalars become plain numbers."""
    plain = lambda v: v.item() if hasattr(v, "item") else str(v)  # noqa: E731
    write_atomically(path, json.dumps(value, indent=2, default=plain, ensure_ascii=False) + "\n")


@contextmanager
def alone_in(run: "RunDir") -> Iterator[None]:
    """Hold the run directory; the system lets go of it when the process ends, however it ends.

    Raises RunError where another process is at work there.
    """
    with (run.root / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(f"Another process ({file.read().strip()}) is at work in {run.root}.") from None
        file.truncate(0)
        file.write(f"{platform.node()}, process {os.getpid()}")
        file.flush()
        yield


@dataclass(frozen=True)
class RunDir:
    """One run on disk."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, YAML."""
        return self.root / "config.yaml"

    @property
    def overrides(self) -> Path:
        """What was typed when the run began, YAML."""
        return self.root / ".hydra" / "overrides.yaml"

    @property
    def commands(self) -> Path:
        """What was typed each time, a JSON object a line."""
        return self.root / ".hydra" / "commands.jsonl"

    @property
    def prepared(self) -> Path:
        """Which folder of the token cache the run trains on, JSON."""
        return self.root / "prepared.json"

    @property
    def quantized(self) -> Path:
        """Names of the modules whose weights training had in 4 or 8 bits, JSON."""
        return self.root / "quantized.json"

    @property
    def model(self) -> Path:
        """What the model's code says of its weights, and the token that ends a turn, as training had them, JSON."""
        return self.root / "model.json"

    @property
    def checkpoints(self) -> Path:
        """The trainer's own."""
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        """PEFT adapter and tokenizer."""
        return self.root / "adapter"

    @property
    def merged(self) -> Path:
        """A plain transformers folder."""
        return self.root / "merged"

    @property
    def benchmark(self) -> Path:
        """base.json, adapter.json, merged.json, comparison.json."""
        return self.root / "benchmark"

    @property
    def samples(self) -> Path:
        """A generated text a line."""
        return self.root / "samples.jsonl"

    @property
    def train_log(self) -> Path:
        """A logged step a line."""
        return self.root / "train_log.jsonl"

    @property
    def log(self) -> Path:
        """What the libraries print."""
        return self.root / "run.log"

    @property
    def metrics(self) -> Path:
        """All metrics, flat."""
        return self.root / "metrics.json"

    def receipt(self, stage: str) -> Path:
        """The file that says that `stage` is finished."""
        return self.root / "receipts" / f"{stage}.json"

    def written_since(self, moment: float) -> dict[str, int]:
        """Files written since `moment` (seconds since the epoch) and their sizes in bytes; not the trainer's own."""
        return {
            str(path.relative_to(self.root)): path.stat().st_size
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.stat().st_mtime >= moment and self.checkpoints not in path.parents
        }
