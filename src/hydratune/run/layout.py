"""The run directory: every path by name, and files written whole or not at all."""

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hydratune.config.schema import RunError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Temporary name, fsync, rename: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # such as a full disk, which the rest need not fill
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """As write_atomically, for a JSON value; numpy scalars become plain numbers."""
    plain = lambda v: v.item() if hasattr(v, "item") else str(v)  # noqa: E731
    write_atomically(path, json.dumps(value, indent=2, default=plain, ensure_ascii=False) + "\n")


NO_LOCKS = (
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
)  # of file systems such as Lustre that is mounted without flock
_held: set[Path] = set()  # folders whose lock this process holds


@contextmanager
def alone_in(run: "RunDir") -> Iterator[None]:
    """Hold the run directory; the system lets go of it when the process ends, however it ends.

    Raises RunError where another process is at work there.
    """
    root = run.root.resolve()
    if root in _held:  # by a caller of the caller
        yield
        return
    with (run.root / ".lock").open("a+") as file:
        _take(file, run.root)
        file.truncate(0)
        file.write(f"{platform.node()}, process {os.getpid()}")
        file.flush()
        _held.add(root)
        try:
            yield
        finally:
            _held.discard(root)


def _take(file: IO[str], root: Path) -> None:
    """Not refused at once: who only looks whether somebody is at work (is_held) holds it for a moment, too."""
    for _ in range(20):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        except OSError as error:
            raise RunError(no_locks(root, error)) from None
    file.seek(0)
    raise RunError(f"Another process ({file.read().strip()}) is at work in {root}.")


def no_locks(root: Path, error: OSError) -> str:
    """What is to be done where the file system has none."""
    return f"{root} can't be locked ({error.strerror}): its file system must take flock, as Lustre mounted with flock does."


def is_held(root: Path) -> bool:
    """Whether a process is at work in the run directory."""
    try:
        with (root / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # none has been there, or who looks may not open it
        return False
    return False


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Of all processes that come to the file, one is inside; the others wait."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
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
    def documents(self) -> Path:
        """The documents' scores under each metric of each model (build/units.py)."""
        return self.benchmark / "documents.npz"

    @property
    def validation(self) -> Path:
        """The validation rows' losses, as above."""
        return self.root / "validation.npz"

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

    @property
    def job(self) -> Path:
        """Of a sweep's job: its record, JSON."""
        return self.root / "job.json"

    @property
    def deaths(self) -> Path:
        """Of one that Slurm runs: after which steps it was killed without a word, JSON."""
        return self.root / "deaths.json"

    @property
    def screen(self) -> Path:
        """Of a sweep's job: what it printed."""
        return self.root / "screen.log"

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
