"""conf/data -> examples: which rows of which sources, each a conversation or a text."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64, xxh3_128

from hydratune.build.sockets import load_socket
from hydratune.build.sources import Source, open_source
from hydratune.config.schema import ConfigError, DataConf, SourceConf
from hydratune.config.values import converted
from hydratune.formats import IN_A_MESSAGE, Chat, Text, detect, example

CHECKED_ROWS = 10_000  # of each source, before anything is started
NAMES = 20  # columns that an error lists
Named = tuple[SourceConf, str, str]  # a source, and the settings that hold its path and its split
NAMED = 3  # bad rows that an error names; it counts the others


@dataclass(frozen=True)
class Item:
    """A row: the file it is from, its number there from 1, and what it is, or what is wrong with it."""

    file: str
    number: int
    position: int  # in its source, from 0
    example: Chat | Text | ValueError
    held_out: bool = False  # for validation, by data.validation_share

    @property
    def place(self) -> str:
        return f"{self.file}, row {self.number}"


@dataclass(frozen=True)
class Part:
    """One source of the rows, with what was said of it, and how many of its rows are taken at most."""

    conf: SourceConf
    source: Source
    formatter: Callable[[Any], Any]
    most: int | None

    @cached_property
    def order(self) -> np.ndarray | None:
        """The positions of the rows that are taken, in their order; None: all as they stand."""
        if self.conf.shuffle_seed is None and self.most is None:
            return None
        count = self.source.count
        # as datasets.Dataset.shuffle does
        seed = self.conf.shuffle_seed
        order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
        return order[: self.most]

    def items(self, held_out_share: float = 0.0) -> Iterator[Item]:
        """The rows that are taken, in the order in which they stand in the files."""
        taken = None
        if self.order is not None:
            taken = np.zeros(self.source.count, bool)
            taken[self.order] = True
        kind = None if self.conf.format == "auto" else self.conf.format
        for position, (file, number, raw) in enumerate(self.source):
            if taken is not None and not taken[position]:
                continue
            try:
                if isinstance(raw, ValueError):
                    raise raw
                row = self.formatter(raw)
                kind = kind or detect(row, self.conf.columns)
                made = example(row, kind, self.conf.columns)
                # equal rows fall on the same side, wherever they stand
                held_out = bool(held_out_share) and _place_of(made) < held_out_share
            except ValueError as error:
                yield Item(file, number, position, error)
                continue
            yield Item(file, number, position, made, held_out)

    def identity(self) -> Any:
        """What decides which rows are taken, plain."""
        conf = {
            key: value for key, value in asdict(self.conf).items() if key not in ("path", "name", "revision", "split")
        }
        return [self.source.digest(), conf, self.most]


def training_parts(conf: DataConf) -> list[Part]:
    """The sources to train on. Raises ConfigError where one isn't there."""
    parts = [_part(conf, *named) for named in _training(conf)]
    shares = [entry.get("weight") for entry in conf.mix]
    return _weighted(parts, shares) if any(share is not None for share in shares) else parts


def _training(conf: DataConf) -> Iterator[Named]:
    if not conf.mix:
        yield SourceConf(**_of_source(conf)), "data.path", "data.split"
    for number, entry in enumerate(conf.mix):
        # OmegaConf takes '3' for 3 under the keys of the group, and so it is here
        own = {key: converted(f"data.{key}", value) for key, value in entry.items() if key != "weight"}
        key = f"data.mix[{number}]"
        split_key = f"{key}.split" if "split" in own else "data.split"
        yield SourceConf(**{**_of_source(conf), **own}), f"{key}.path", split_key


def sources_of(conf: DataConf) -> list[Named]:
    """What is said of each source of training and validation rows, and the settings that hold its path and its split."""
    return [*_training(conf), *_validation(conf)]


def _weighted(parts: list[Part], weights: list[float]) -> list[Part]:
    """As many rows of each as the weights allow, none twice. Raises ConfigError where that leaves a source none."""
    have = [min(part.source.count, part.most or part.source.count) for part in parts]
    whole = min(count / weight for count, weight in zip(have, weights, strict=True))
    made = [replace(part, most=int(whole * weight + 1e-9)) for part, weight in zip(parts, weights, strict=True)]
    for number, (part, count) in enumerate(zip(made, have, strict=True)):
        if not count:
            raise ConfigError(f"{part.source.label} has no rows.")
        if whole and not part.most:
            raise ConfigError(
                f"data.mix[{number}].weight={weights[number]:g} leaves none of the {count} rows of {part.source.label}, as "
                "no row is taken twice: give it a larger weight."
            )
    return made


def validation_parts(conf: DataConf) -> list[Part]:
    """The sources of the validation rows that are not a share of the training rows."""
    return [_part(conf, *named) for named in _validation(conf)]


def _validation(conf: DataConf) -> Iterator[Named]:
    if conf.validation_path is None and conf.validation_split is None:
        return
    path, split = conf.validation_path or conf.path, conf.validation_split or "train"
    own = {**_of_source(conf), "path": path, "split": split, "max_rows": None, "shuffle_seed": None}
    if path != conf.path:
        own |= {"name": None, "revision": None}  # which are of the other place
    key = "data.validation_path" if conf.validation_path else "data.path"
    yield SourceConf(**own), key, "data.validation_split"


def check_rows(conf: DataConf) -> None:
    """Read the first rows of every source. Raises ConfigError naming file and row."""
    for part in [*training_parts(conf), *validation_parts(conf)]:
        wrong, seen = [], 0
        for seen, item in enumerate(part.items(), 1):
            if isinstance(item.example, ValueError):
                wrong.append(f"{item.place}: {item.example}.")
            if seen == CHECKED_ROWS:
                break
        if not seen:
            raise ConfigError(f"{part.source.label} has no rows.")
        if wrong and (conf.on_bad_row == "error" or len(wrong) == seen):
            raise bad_rows(wrong)
        _check_columns(part)


def _check_columns(part: Part) -> None:
    """Refuse a mapped column that the rows don't have; a formatter of the user's may make it."""
    if not part.conf.columns or part.formatter is not _as_it_stands:
        return
    rows = [raw for _, _, raw in islice(part.source, CHECKED_ROWS) if isinstance(raw, dict)]
    names = dict.fromkeys(name for row in rows for name in row)
    for ours, theirs in part.conf.columns.items():
        if ours not in IN_A_MESSAGE and theirs not in names:
            found = ", ".join(map(str, list(names)[:NAMES]))
            raise ConfigError(
                f"data.columns.{ours}={theirs}: no row of {part.source.label} has such a column, found {found}."
            )


def bad_rows(sentences: list[str], more: int = 0) -> ConfigError:
    """The first sentences, and how many further rows are like these."""
    more += len(sentences) - NAMED
    return ConfigError(sentences[:NAMED] + ([f"… and {more} further rows like these."] if more > 0 else []))


def _part(conf: DataConf, own: SourceConf, key: str, split_key: str) -> Part:
    return Part(own, open_source(own, key, split_key), _formatter(conf, own), own.max_rows)


def _of_source(conf: DataConf) -> dict[str, Any]:
    return {f.name: getattr(conf, f.name) for f in fields(SourceConf)}


def _place_of(made: Chat | Text) -> float:
    """A number from 0 to 1 that depends on the row's content alone."""
    return xxh3_64(repr(made).encode("utf-8", "surrogatepass")).intdigest() / 2**64


def formatter_digest(conf: DataConf) -> str | None:
    """Of the text of the module that holds `data.formatter`; what that module imports is not seen."""
    if conf.formatter is None:
        return None
    function = load_socket("data.formatter", conf.formatter)
    try:
        return xxh3_128(Path(inspect.getfile(inspect.unwrap(function))).read_bytes()).hexdigest()
    except TypeError:
        return repr(function)


def _as_it_stands(row: Any) -> Any:
    return row


def _formatter(conf: DataConf, own: SourceConf) -> Callable[[Any], Any]:
    """A row -> a row of a known format: as it stands, or as the user's own function makes it."""
    if conf.formatter is None:
        return _as_it_stands
    function = load_socket("data.formatter", conf.formatter)
    if not callable(function):
        raise ConfigError(f"data.formatter={conf.formatter} must be a function that takes a row.")

    def formatted(row: Any) -> Any:
        try:
            made = function(row)
        except Exception as error:  # the user's code may raise anything
            said = " ".join(str(error).split())
            raise ValueError(f"data.formatter={conf.formatter} failed: {type(error).__name__}: {said}") from error
        return {own.columns.get("messages", "messages"): made} if isinstance(made, list) else made

    return formatted
