"""A sweep's folder: its jobs by number and hash, and what it was started with; the same between calls."""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hydratune.config.schema import ConfigError
from hydratune.run.job import CANCELLED, Record, look_at
from hydratune.run.layout import NO_LOCKS, RunDir, in_turn, is_held, no_locks, write_atomically, write_json

LOCKED = ("sweep.json", "jobs.jsonl")  # written by who holds the sweep's lock


def label(number: int, overrides: Sequence[str]) -> str:
    """How a job is called on the screen."""
    return f"job {number} ({' '.join(overrides)})" if overrides else f"job {number}"


@dataclass(frozen=True)
class Entry:
    """A job of the sweep."""

    number: int
    hash: str  # of what is trained, and of the rest that is swept
    overrides: list[str]  # those that differ between jobs
    words: list[str]  # all
    stages: list[str] | None = None  # config.yaml of one that prepares for others names its own meanwhile
    replaced: bool = False  # the same overrides mean other settings by now, and have another job

    @property
    def label(self) -> str:
        """For a person."""
        return label(self.number, self.overrides)


@dataclass(frozen=True)
class Asked:
    """A job as a command asks for it."""

    hash: str
    overrides: list[str]
    words: list[str]
    stages: list[str]


class SweepDir:
    """`root`/sweep.json says what the sweep is, `root`/jobs.jsonl has a line for each job, `root`/<number> is its run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def info(self) -> dict[str, Any]:
        """What the sweep was started with. Raises ConfigError where there is none."""
        path = self.root / "sweep.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        except FileNotFoundError:
            raise ConfigError(f"{self.root} holds no sweep: there is no {path}.") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} can't be read: {' '.join(str(error).split())}.") from None
        raise ConfigError(f"{path} is no sweep's: name another folder.")

    def entries(self) -> Iterator[Entry]:
        """The jobs in the order of their numbers, without those that were replaced."""
        return (entry for entry in self._all() if not entry.replaced)

    def _all(self) -> Iterator[Entry]:
        path = self.root / "jobs.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    yield Entry(**json.loads(line))

    def run_of(self, number: int) -> Path:
        """The run directory of a job."""
        return self.root / str(number)

    def states(self) -> Iterator[tuple[Entry, Record | None, str]]:
        """Each job with its record and its state now."""
        for entry in self.entries():
            yield entry, *look_at(self.run_of(entry.number))

    def numbers(self, asked: Sequence[Asked]) -> list[int]:
        """The number of each job: the one that it has, else the next that is free."""
        known = {entry.hash: entry.number for entry in self._all()}
        free = max(known.values(), default=-1) + 1
        numbers = []
        for job in asked:
            if job.hash not in known:
                known[job.hash], free = free, free + 1
            numbers.append(known[job.hash])
        return numbers

    def register(
        self,
        asked: Sequence[Asked],
        config_of: Callable[[int, int], dict[str, Any]],
        info: dict[str, Any],
        submitted: Collection[int] = (),
    ) -> tuple[list[int], list[int]]:
        """Note the jobs, and write config.yaml of each: `config_of(place, number)` as plain data.

        Returns their numbers, and those of jobs at work or `submitted` that were asked for with other settings, and
        keep theirs. Whoever else does the same at the same time waits. Raises ConfigError where it can't be written,
        and has then written nothing.
        """
        made = [path for path in (self.root, *self.root.parents) if not path.exists()]
        known = True
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with in_turn(self.root / ".lock"):
                self.refuse_another(info)
                known = (self.root / "sweep.json").exists()
                for name in LOCKED:
                    for left in self.root.glob(f".{name}.*"):  # by one that was killed: who writes them is in here
                        left.unlink(missing_ok=True)
                # first, so that who is killed while writing the rest finds a sweep there; then jobs, the list of them last
                write_json(self.root / "sweep.json", info)
                numbers = self.numbers(asked)
                before, kept = {entry.number: entry for entry in self._all()}, []
                for place, number in enumerate(numbers):
                    root = self.run_of(number)
                    if not root.exists():
                        made.insert(0, root)
                        root.mkdir()
                    same = self.put_config(root, config_of(place, number), asked[place].words, number in submitted)
                    if number in submitted and number in before:
                        same &= before[number].stages in (None, asked[place].stages)
                    if not same:
                        kept.append(number)
                entries = _listed(before, asked, numbers, kept)
                lines = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)
                write_atomically(self.root / "jobs.jsonl", lines)
                return numbers, kept
        except OSError as error:
            self._undo(made, known)
            if error.errno in NO_LOCKS:
                raise ConfigError(no_locks(self.root, error)) from None
            raise ConfigError(
                f"The sweep's folder {self.root} can't be written ({error.strerror}), and nothing was started: make room "
                "there, or set hydra.sweep.dir=DIR."
            ) from None

    def _undo(self, made: list[Path], known: bool) -> None:
        """Take away the folders that were `made`, and what else a sweep that was not `known` before has here."""
        with suppress(OSError):
            for name in () if known else (*LOCKED, ".lock"):
                (self.root / name).unlink(missing_ok=True)
        for path in made:
            if path.parent == self.root:
                shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.rmdir()

    def refuse_another(self, info: dict[str, Any]) -> None:
        """Raises ConfigError where the folder is another sweep's, or another thing's."""
        if (self.root / "sweep.json").exists():
            found = self.info
            if found.get("identity") != info["identity"]:
                raise ConfigError(
                    f"{self.root} holds another sweep ({' '.join(found.get('typed', []))}): set another hydra.sweep.dir."
                )
        elif self.root.exists() and (not self.root.is_dir() or any(self.root.glob("[0-9]*/config.yaml"))):
            raise ConfigError(
                f"{self.root} is there already, and holds no sweep of this kind: set another hydra.sweep.dir."
            )

    def put_config(self, root: Path, plain: dict[str, Any], words: list[str], submitted: bool = False) -> bool:
        """config.yaml, which says what is run; of a job at work or `submitted` it says what that was started with.

        Returns False where that is something else.
        """
        run = RunDir(root)
        text = yaml.dump(plain, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
        if run.config.is_file():
            if run.config.read_text(encoding="utf-8") == text:
                return True
            if submitted or is_held(root):
                return _equal(yaml.load(run.config.read_text(encoding="utf-8"), Loader=_LOADER), plain)
        write_atomically(run.config, text)
        if not run.overrides.is_file():
            write_atomically(run.overrides, yaml.dump(words, Dumper=_DUMPER))
        return True

    def is_cancelled(self) -> bool:
        """Whether the whole sweep was cancelled."""
        return (self.root / CANCELLED).exists()


def _listed(
    entries: dict[int, Entry], asked: Sequence[Asked], numbers: Sequence[int], kept: Collection[int]
) -> list[Entry]:
    """All jobs, those `asked` for among them, `kept` as they are; an older one with the same overrides is replaced."""
    new = {n: Entry(n, job.hash, job.overrides, job.words, job.stages) for n, job in zip(numbers, asked, strict=True)}
    new |= {number: entries[number] for number in kept if number in entries}
    said = {tuple(entry.overrides) for entry in new.values()}
    old = {n: replace(e, replaced=e.replaced or tuple(e.overrides) in said) for n, e in entries.items()}
    return [entry for _, entry in sorted((old | new).items())]


def _equal(found: Any, plain: dict[str, Any]) -> bool:
    """But for what a run writes there itself: its folder by the whole path, and, for a preparation, its own stage."""
    own = {"run_dir": None, "stages": None}
    return isinstance(found, dict) and found | own == plain | own


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast, where PyYAML has libyaml
