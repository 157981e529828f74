"""A folder of the token cache: rows as memory-mapped Arrow files, and a report that says what must be in it."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from xxhash import xxh3_64, xxh3_128

SCHEMA = pa.schema(
    {"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32()), "file": pa.int32(), "number": pa.int32()}
)
REPORT = "report.json"


class Writer:
    """Adds rows to an Arrow file, and keeps of each its length, its supervised tokens, its digest and its place."""

    def __init__(self, path: Path) -> None:
        self.sink = pa.OSFile(str(path), "wb")
        self.stream = pa.ipc.new_stream(self.sink, SCHEMA)
        self.files: dict[str, int] = {}
        self._kept: dict[str, list[np.ndarray]] = {name: [] for name in ("length", "supervised", "file", "number")}
        self._digests: list[np.ndarray] = []

    def add(self, ids: Sequence[list[int]], labels: Sequence[list[int]], places: Sequence[tuple[str, int]]) -> None:
        """Rows of equal ids and labels, and the file and number of each."""
        count = len(ids)
        lengths = np.fromiter(map(len, ids), np.int32, count)
        offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
        flat_ids = np.fromiter(chain.from_iterable(ids), np.int32, offsets[-1])
        flat_labels = np.fromiter(chain.from_iterable(labels), np.int32, offsets[-1])
        files = np.fromiter((self.files.setdefault(file, len(self.files)) for file, _ in places), np.int32, count)
        numbers = np.fromiter((number for _, number in places), np.int32, count)
        lists = [pa.ListArray.from_arrays(offsets, flat) for flat in (flat_ids, flat_labels)]
        self.stream.write(pa.record_batch([*lists, pa.array(files), pa.array(numbers)], schema=SCHEMA))
        supervised = np.add.reduceat(flat_labels != -100, offsets[:-1], dtype=np.int32) if count else lengths
        for name, values in zip(self._kept, (lengths, supervised, files, numbers), strict=True):
            self._kept[name].append(values)
        rows = (flat_ids[a:b].tobytes() for a, b in pairwise(offsets))
        self._digests.append(np.fromiter((xxh3_64(row).intdigest() for row in rows), np.uint64, count))

    def kept(self, name: str) -> np.ndarray:
        """length, supervised (tokens), file or number of each row, shape (rows,)."""
        return np.concatenate([np.zeros(0, np.int32), *self._kept[name]])

    @property
    def digests(self) -> np.ndarray:
        """Of each row's ids, shape (rows,)."""
        return np.concatenate([np.zeros(0, np.uint64), *self._digests])

    def place(self, row: int) -> str:
        return f"{list(self.files)[self.kept('file')[row]]}, row {self.kept('number')[row]}"

    def close(self) -> None:
        self.stream.close()
        self.sink.close()


def seal(folder: Path, report: dict[str, Any], name: str = REPORT) -> None:
    """Write the report, with the size and digest of every other file, all of them on the disk when this returns."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {str(path.relative_to(folder)): [path.stat().st_size, _digest(path)] for path in paths}
    (folder / name).write_text(json.dumps({**report, "files": files}, indent=2, ensure_ascii=False), encoding="utf-8")
    _seal_of(folder, name).write_text(_digest(folder / name))
    for path in [*folder.rglob("*"), folder]:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def damage(folder: Path, name: str = REPORT) -> str | None:
    """What is wrong with the folder's files, as against its report; None where nothing is."""
    try:
        if _digest(folder / name) != _seal_of(folder, name).read_text():
            return f"{name} is not what was written"
        files = json.loads((folder / name).read_text(encoding="utf-8"))["files"]
        for path, (size, digest) in files.items():
            if (folder / path).stat().st_size != size or _digest(folder / path) != digest:
                return f"{path} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _seal_of(folder: Path, name: str) -> Path:
    return (folder / name).with_suffix(".digest")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxh3_128).hexdigest()


def _joined(rows: Dataset, packs: dict[str, list[list[int]]]) -> dict[str, list[Any]]:
    """Of each pack its rows one after another, their lengths as `seq_lengths`, and the file and number of each."""
    found: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "seq_lengths", "file", "number")}
    for members in packs["rows"]:
        part = rows[members]
        for name in ("file", "number"):
            found[name].append(part[name])
        for name in ("input_ids", "labels"):
            found[name].append(list(chain.from_iterable(part[name])))
        found["seq_lengths"].append([len(ids) for ids in part["input_ids"]])
    return found


class Prepared:
    """What the stage prepare has left for the later ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))

    @cached_property
    def rows(self) -> Dataset:
        """The training rows in their order: input_ids, labels, and file (its number in the report) and number there."""
        rows, order = Dataset.from_file(str(self.folder / "training.arrow")), self.folder / "order.npy"
        return rows.select(np.load(order)) if order.exists() else rows

    @cached_property
    def validation(self) -> Dataset | None:
        """The validation rows, as above."""
        path = self.folder / "validation.arrow"
        return Dataset.from_file(str(path)) if path.exists() else None

    @property
    def training(self) -> Dataset:
        """What the trainer takes as one row: a row, or a pack of several with `seq_lengths`."""
        path = self.folder / "packs.npz"
        if not path.exists():
            return self.rows
        with np.load(path) as packs:
            groups = Dataset.from_dict({"rows": np.split(packs["rows"], packs["ends"][:-1])})
        return groups.with_transform(partial(_joined, self.rows))
