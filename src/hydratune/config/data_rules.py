"""Rules within the data group, and between it and the others, each a sentence that ends with what to type."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from hydratune.config.schema import Broken, Config, DataConf, SourceConf
from hydratune.config.values import suggestion, value_problem
from hydratune.formats import FORMATS

OF_A_SOURCE = tuple(f.name for f in fields(SourceConf))


def broken_data_rules(config: Config) -> Iterator[Broken]:
    """Every rule about data that is broken."""
    data = config.data
    needed = {"prepare", "train"} & set(config.stages) or not config.stages
    if data.path is None and not data.mix and needed:
        yield Broken(("data",), "no data is named: set data.path=FILE, or choose data=demo")
    if data.path is not None and data.mix:
        yield Broken(
            ("data.path", "data.mix"),
            f"data.path={data.path} and data.mix both name the rows: set data.path=null, or leave data.mix out",
        )
    yield from broken_columns("data.columns", data.columns, data.format, "data.columns")
    if isinstance(data.mix, list):
        yield from _mix(data)
    yield from _validation(data, config)
    if data.on_bad_row == "error" and data.max_bad_share != DataConf().max_bad_share:
        yield Broken(("data.max_bad_share",), "data.max_bad_share has no effect with data.on_bad_row=error: set skip")
    if data.format == "text" and data.loss != "all":
        yield Broken(
            ("data.format", "data.loss"),
            f"data.format=text has no turns that data.loss={data.loss} could supervise: set data.loss=all",
        )


def broken_columns(key: str, columns: Any, kind: Any, about: str) -> Iterator[Broken]:
    """What is wrong with the mapping `columns` of rows in the format `kind`; `about` is the setting that holds it."""
    if not isinstance(columns, dict):
        return
    groups = [reads for name, reads in FORMATS.items() if name == kind] or FORMATS.values()
    known = dict.fromkeys(name for names, _ in groups for name in names)
    for ours, theirs in columns.items():
        named = about if about == "data.mix" else f"{about}.{ours}"
        if ours not in known:
            near = suggestion(str(ours), known)
            yield Broken((named,), f"{key} maps {', '.join(known)} to the rows' own names, found {ours!r}{near}")
        elif not isinstance(theirs, str) or not theirs:
            yield Broken((named,), f"{key}.{ours} is the name of a column, found {theirs!r:.60}")


def _mix(data: DataConf) -> Iterator[Broken]:
    """Each source of `data.mix`, with the words that the same keys of the group have."""
    weighted = 0
    for number, entry in enumerate(data.mix):
        key = f"data.mix[{number}]"
        if not isinstance(entry, dict):
            yield Broken(("data.mix",), f"{key} is a mapping with path and what else differs, found {entry!r:.60}")
            continue
        if not entry.get("path"):
            yield Broken(("data.mix",), f"{key} has no path: give it one, as in data.mix=[{{path: a.jsonl}}]")
        for name, value in entry.items():
            if name == "weight":
                weighted += 1
                if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                    yield Broken(("data.mix",), f"{key}.weight is a number above 0, found {value!r:.60}")
            elif name not in OF_A_SOURCE:
                near = suggestion(str(name), [*OF_A_SOURCE, "weight"])
                yield Broken(("data.mix",), f"there is no key {key}.{name}{near}")
            elif said := value_problem(f"data.{name}", value):
                yield Broken(("data.mix",), said.replace(f"data.{name}", f"{key}.{name}", 1))
        yield from broken_columns(
            f"{key}.columns", entry.get("columns", {}), entry.get("format", data.format), "data.mix"
        )
    if 0 < weighted < len(data.mix):
        yield Broken(
            ("data.mix",), f"{weighted} of {len(data.mix)} sources in data.mix have a weight: give each one, or none"
        )


def _validation(data: DataConf, config: Config) -> Iterator[Broken]:
    other = data.validation_path or data.validation_split
    if data.validation_share is not None and other:
        yield Broken(
            ("data.validation_share", "data.validation_path", "data.validation_split"),
            f"data.validation_share={data.validation_share:g} holds rows out, and {other} names others: leave out one",
        )
    if data.mix and data.validation_split and not data.validation_path:
        yield Broken(
            ("data.validation_split", "data.mix"),
            "data.validation_split is of one source, and data.mix names several: set data.validation_path too",
        )
    same = data.validation_path in (None, data.path) and (data.validation_split or "train") == data.split
    if other and same and data.path:
        yield Broken(
            ("data.validation_path", "data.validation_split"),
            f"the validation rows are the training rows, split {data.split} of {data.path}: name others, or set "
            "data.validation_share=0.1",
        )
    if data.validation_share is None and not other:
        for name in ("eval_steps", "per_device_eval_batch_size"):
            value, default = getattr(config.trainer, name), getattr(type(config.trainer)(), name)
            if value != default:
                yield Broken(
                    (f"trainer.{name}", "data.validation_share"),
                    f"trainer.{name}={value} has no effect without validation rows: set data.validation_share=0.1",
                )
