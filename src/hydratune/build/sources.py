"""conf/data -> raw rows, one after another, from files, a saved dataset or the hub."""

import glob
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from xxhash import xxh3_128

from hydratune.build.hub import Need, explain
from hydratune.build.rows import READERS, count_rows, kind_of, readable, without_nulls
from hydratune.config.schema import ConfigError, SourceConf

COMMIT = re.compile("[0-9a-f]{40}")
SHOWN = 10  # files of a folder that a sentence names
DEMO = Path(__file__).resolve().parents[1] / "demo"
NOT_READ = (".txt", ".md", ".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".xlsx", ".h5", ".npy", ".pkl", ".db")


@dataclass(frozen=True)
class Source:
    """Rows from one place: files, or a dataset of the library datasets. Iterating reads them from the beginning."""

    label: str
    files: tuple[Path, ...] = ()
    dataset: Dataset | None = None
    revision: str | None = None  # commit on the hub

    def __iter__(self) -> Iterator[tuple[str, int, Any]]:
        """Where a row is (the file), its number there from 1, and the row, or the ValueError that reading it gave.

        Raises ConfigError for a file that can't be read as a whole.
        """
        if self.dataset is not None:
            rows = self.dataset.with_format(None)  # as saved, it may give arrays, and some of its columns alone
            for number, row in enumerate(readable(len(rows), lambda first, last: _rows_of(rows[first:last])), 1):
                yield self.label, number, row
            return
        for path in self.files:
            for number, row in enumerate(READERS[kind_of(path)](path), 1):
                yield str(path), number, row

    @cached_property
    def count(self) -> int:
        """Rows, the bad ones with them."""
        if self.dataset is not None:
            return len(self.dataset)
        return sum(count_rows(path) for path in self.files)

    def digest(self) -> list[str]:
        """What identifies the content: of files, each one's bytes; of a dataset, its fingerprint and commit."""
        if self.dataset is not None and not self.files:
            return [self.label, str(self.revision), self.dataset._fingerprint]
        found = []
        for path in self.files:
            with path.open("rb") as file:
                found.append(f"{''.join(path.suffixes)} {hashlib.file_digest(file, xxh3_128).hexdigest()}")
        return found


def _rows_of(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [
        dict(zip(columns, map(without_nulls, values), strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def open_source(conf: SourceConf, key: str = "data.path", split_key: str = "data.split") -> Source:
    """The rows that `conf` names; `key` and `split_key` are the settings that hold its path and its split.

    Raises ConfigError where there are none to be found.
    """
    assert conf.path
    path = _place(conf.path)
    of_hub = [f"data.{name}={value}" for name in ("name", "revision") if (value := getattr(conf, name))]
    if "://" in conf.path:
        raise ConfigError(
            f"{key}={conf.path} is a URL, and rows are in files here or in a dataset of the hub: download it, and set "
            f"{key}=FILE."
        )
    if is_here(conf.path):
        if of_hub:
            raise ConfigError(f"{of_hub[0]} is for data on the hub, and {key}={conf.path} is here: leave it out.")
        return _local(conf, path, key, split_key)
    try:
        dataset = load_dataset(conf.path, conf.name, split=conf.split, revision=conf.revision)
    except ConfigError:
        raise
    except Exception as error:  # the library raises its own and its builders' errors
        sentence = explain(Need("dataset", conf.path, conf.revision, conf.name, asked=key), error)
        if sentence:
            raise ConfigError(sentence) from None
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{key}={conf.path}, split {conf.split}: {said.rstrip('.') or type(error).__name__}."
        ) from None
    commit = _commit(dataset)
    if commit and COMMIT.fullmatch(conf.revision or "") and commit != conf.revision:
        raise ConfigError(
            f"data.revision={conf.revision} of {key}={conf.path} can't be reached, and what the cache holds is {commit}."
        )
    return Source(conf.path, dataset=dataset, revision=commit or conf.revision)


def is_here(path: str) -> bool:
    """Whether `path` names files or a folder, there or not, and no dataset of the hub; a URL is taken for a file's."""
    place = _place(path)
    if "://" in path or place.exists() or any(sign in path for sign in "*?[") or path.startswith(("/", ".", "~")):
        return True
    return kind_of(place) in READERS or place.suffix in NOT_READ


def _place(path: str) -> Path:
    return DEMO / "train.jsonl" if path == "demo" else Path(path).expanduser()


def _commit(dataset: Dataset) -> str | None:
    """The hub's commit that `dataset` is from, after which the library names the folder of what it has prepared."""
    folders = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    return next((name for name in folders if COMMIT.fullmatch(name)), None)


def _local(conf: SourceConf, path: Path, key: str, split_key: str) -> Source:
    if path.is_dir():
        return _folder(conf, path, key, split_key)
    if path.exists():
        found = [path]
    else:
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            what = "no file of that pattern" if any(sign in str(path) for sign in "*?[") else "no such file"
            raise ConfigError(f"{key}={conf.path}: there is {what}.")
    if conf.split != "train":
        raise ConfigError(f"{split_key}={conf.split} is for a folder or a dataset, and {path} is a file: leave it out.")
    for file in found:
        if kind_of(file) not in READERS:
            raise ConfigError(f"{key}: {file} is none of the kinds that are read: {', '.join(READERS)}.")
    return Source(str(path), tuple(found))


def _folder(conf: SourceConf, folder: Path, key: str, split_key: str) -> Source:
    """A dataset saved by the library datasets, or files `<split>.<ending>`, `<split>-*.<ending>`, also in data/."""
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        try:
            saved = load_from_disk(folder)
        except Exception as error:  # of any kind, where a file is missing or broken
            said = " ".join(str(error).split())[:300].rstrip(".")
            raise ConfigError(f"{key}={folder} is no dataset that can be loaded: {said}.") from None
        if isinstance(saved, DatasetDict) and conf.split not in saved:
            raise ConfigError(f"{split_key}={conf.split}: {folder} has the splits {', '.join(saved)}.")
        if not isinstance(saved, DatasetDict) and conf.split != "train":
            raise ConfigError(f"{split_key}={conf.split}: {folder} holds a dataset without splits: leave it out.")
        dataset = saved[conf.split] if isinstance(saved, DatasetDict) else saved
        inside = folder / conf.split if isinstance(saved, DatasetDict) else folder
        return Source(str(folder), tuple(sorted(inside.glob("*.arrow"))), dataset)
    files = sorted(p for place in (folder, folder / "data") if place.is_dir() for p in place.iterdir() if p.is_file())
    files_here = [p for p in files if kind_of(p) in READERS]
    named = [p for p in files_here if _stem(p) == conf.split or _stem(p).startswith(f"{conf.split}-")]
    if not named or len({kind_of(p) for p in named}) > 1 or len({_stem(p) for p in named}) < len(named):
        more = ", …" if len(files_here) > SHOWN else ""
        found = ", ".join(p.name for p in files_here[:SHOWN]) + more or f"none of {', '.join(READERS)}"
        raise ConfigError(
            f"{split_key}={conf.split}: {folder} must hold one file {conf.split}.jsonl (or of another kind), or several "
            f"{conf.split}-*.jsonl, found {found}; all of a folder's files are {key}='{folder}/*.jsonl'."
        )
    _refuse_missing_shards(named)
    return Source(str(folder), tuple(named))


def _refuse_missing_shards(files: list[Path]) -> None:
    """Shards say in their names how many there are: train-00000-of-00003.parquet."""
    parts = [found for path in files if (found := re.fullmatch(r".*-(\d+)-of-(\d+)", _stem(path)))]
    if parts and len(parts) < int(parts[0][2]):
        raise ConfigError(
            f"{files[0].parent} holds {len(parts)} of the {int(parts[0][2])} files {files[0].name} belongs to."
        )


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]
