"""Files of rows -> raw rows, one after another: JSON, JSONL, CSV, Parquet, Arrow; the first three also as .gz."""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from hydratune.config.schema import ConfigError

AT_ONCE = 1000  # rows taken from a table
csv.field_size_limit(sys.maxsize)


def kind_of(path: Path) -> str:
    """The ending that decides how a file is read, without .gz."""
    return path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines and their numbers from 1; only a newline ends one, as JSON may hold Unicode's other separators."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from enumerate(cast(IO[bytes], file), 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} is no whole gzip file: {error}.") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}.") from None


def _jsonl(path: Path) -> Iterator[Any]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            # a byte-order mark is allowed where a file begins
            yield json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield ValueError(f"line {number} is not UTF-8: {error.reason}")
        except json.JSONDecodeError as error:
            yield ValueError(f"line {number} is not JSON: {error.msg}")
        except RecursionError:
            yield ValueError(f"line {number} is nested too deeply")
        except ValueError:  # Python's int() takes no more than 4300 digits
            yield ValueError(f"line {number} holds a number of too many digits")


def _json(path: Path) -> Iterator[Any]:
    raw = b"".join(line for _, line in _lines(path))
    try:
        text = raw.decode("utf-8-sig")
        rows = json.loads(text) if text.strip() else []
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line} is not UTF-8: {error.reason}.") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno} is not JSON: {error.msg}.") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply.") from None
    except ValueError:  # as above
        raise ConfigError(f"{path} holds a number of too many digits.") from None
    if not isinstance(rows, list):
        raise ConfigError(f"{path} must hold a list of rows, found {type(rows).__name__}; a row a line is .jsonl.")
    yield from rows


def _csv(path: Path) -> Iterator[Any]:
    number, began = 0, 1

    def decoded() -> Iterator[str]:
        nonlocal number
        for number, line in _lines(path):
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")

    try:
        reader = csv.reader(decoded(), delimiter="\t" if kind_of(path) == ".tsv" else ",", strict=True)
        header = next((fields for fields in reader if fields), [])
        if len(set(header)) < len(header):
            raise ConfigError(f"{path}: a column's name stands twice in the first line, {', '.join(header)}.")
        began = number + 1
        for fields in reader:
            began = number + 1
            if fields and len(fields) != len(header):
                yield ValueError(
                    f"{len(fields)} fields (line {number}), and the first line names {len(header)} columns"
                )
            elif fields:
                yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        # where a quote was never closed, the error comes at the end of the file
        raise ConfigError(f"{path}, in the row that begins in line {began}: {error}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}, line {number} is not UTF-8: {error.reason}.") from None


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        if kind_of(path) == ".parquet":
            yield from pq.ParquetFile(path).iter_batches(AT_ONCE)
            return
        with pa.memory_map(str(path)) as mapped:
            try:
                file = pa.ipc.open_file(mapped)
                batches: Iterator[pa.RecordBatch] = (file.get_batch(n) for n in range(file.num_record_batches))
            except pa.ArrowInvalid:
                mapped.seek(0)
                batches = iter(pa.ipc.open_stream(mapped))
            yield from batches
    except (pa.ArrowException, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200].rstrip(".")
        raise ConfigError(f"{path} can't be read as {kind_of(path)[1:]}: {said}.") from None


def _table(path: Path) -> Iterator[Any]:
    for batch in _batches(path):
        yield from readable(batch.num_rows, partial(_rows_of, batch))


def _rows_of(batch: pa.RecordBatch, first: int, last: int) -> list[Any]:
    rows = batch.slice(first, last - first).to_pylist()
    if "arrow.json" in str(batch.schema):
        rows = [{field.name: _with_json(row[field.name], field.type) for field in batch.schema} for row in rows]
    return [{name: without_nulls(value) for name, value in row.items()} for row in rows]


def _with_json(value: Any, kind: pa.DataType) -> Any:
    """`value` of type `kind`, with what Arrow marks as JSON at any depth of it read, which pyarrow leaves as text."""
    if getattr(kind, "extension_name", "") == "arrow.json" and value is not None:
        return json.loads(value)
    if isinstance(value, list):
        return [_with_json(inner, kind.value_type) for inner in value]
    if isinstance(value, dict):
        return {field.name: _with_json(value[field.name], field.type) for field in kind}
    return value


def without_nulls(value: Any) -> Any:
    """`value` without the keys that are null: a table gives each of a column's objects the keys of all of them."""
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def readable(count: int, read: Callable[[int, int], list[Any]]) -> Iterator[Any]:
    """`count` rows, as `read(first, last)` gives them; a ValueError in place of one that it can't give."""
    for first in range(0, count, AT_ONCE):
        last = min(first + AT_ONCE, count)
        try:
            rows = read(first, last)
        except ValueError:  # such as text that is not UTF-8, which Arrow and Parquet may hold
            rows = [_readable(number, read) for number in range(first, last)]
        yield from rows


def _readable(number: int, read: Callable[[int, int], list[Any]]) -> Any:
    try:
        return read(number, number + 1)[0]
    except ValueError as error:
        return ValueError(f"it can't be read: {error}")


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _table, ".arrow": _table,
}  # fmt: skip


def _count_parquet(path: Path) -> int:
    """By the file's end alone; reading says what is wrong with one that has none."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return sum(batch.num_rows for batch in _batches(path))


COUNTERS: dict[str, Callable[[Path], int]] = {
    ".jsonl": lambda path: sum(1 for _, line in _lines(path) if line.strip()),
    ".parquet": _count_parquet,
    ".arrow": lambda path: sum(batch.num_rows for batch in _batches(path)),
}


def count_rows(path: Path) -> int:
    """Rows of the file, the bad ones with them."""
    count = COUNTERS.get(kind_of(path))
    return count(path) if count else sum(1 for _ in READERS[kind_of(path)](path))
