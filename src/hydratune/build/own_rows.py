"""benchmark.own_tasks -> documents: the user's rows, each as what is asked, and its answer."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hydratune.build.data import Item, Part, bad_rows
from hydratune.build.sources import DEMO, open_source
from hydratune.config.schema import BenchmarkConf, ConfigError, SourceConf
from hydratune.config.values import converted
from hydratune.formats import Chat

MOST_CHOICES = 20  # distinct answers that are taken for the choices, where none are given
Document = dict[str, Any]  # prompt, delimiter, answer; of a conversation messages and tools; of a choice, choices


@dataclass(frozen=True)
class OwnRows:
    """Documents, and where each is from."""

    docs: list[Document]
    places: list[str]


SOURCE = {f.name for f in fields(SourceConf)}


def read_rows(name: str, entry: dict[str, Any]) -> OwnRows:
    """The rows of the task `name`. Raises ConfigError naming file and row."""
    key, conf = f"benchmark.own_tasks.{name}", _source_of(entry, SOURCE)
    rows, raw = _read(key, conf, DEMO / "test.jsonl")
    if entry["kind"] != "perplexity" and not rows.docs[0]["prompt"]:
        raise ConfigError(
            f"{rows.places[0]} is plain text, which {key}.kind={entry['kind']} can't ask: set {key}.kind=perplexity."
        )
    if entry["kind"] == "multiple_choice":
        _add_choices(rows, key, entry.get("choices"), raw)
    return rows


def read_examples(name: str, entry: dict[str, Any]) -> OwnRows | None:
    """The rows of its few-shot examples; None where they are the task's own. Raises ConfigError as read_rows does."""
    key, path, split = f"benchmark.own_tasks.{name}", entry.get("fewshot_path"), entry.get("fewshot_split")
    if path != "demo" and path in (None, entry["path"]) and split in (None, entry.get("split", "train")):
        return None
    same = SOURCE - {"max_rows", "shuffle_seed"} - ({"name", "revision"} if path else set())
    conf = replace(_source_of(entry, same), path=path or entry["path"], split=split or "train")
    return _read(key, conf, DEMO / "train.jsonl", "fewshot_")[0]


def own_documents(conf: BenchmarkConf) -> dict[str, list[str] | str]:
    """Task -> the text of each document that it asks about, or why they can't be had here."""
    found: dict[str, list[str] | str] = {}
    for name in conf.tasks:
        if name in conf.own_tasks:
            try:
                found[name] = [doc["prompt"] or doc["answer"] for doc in read_rows(name, conf.own_tasks[name]).docs]
            except ConfigError as error:
                found[name] = error.sentences[0].rstrip(".")
    return found


def _source_of(entry: dict[str, Any], keys: set[str]) -> SourceConf:
    return SourceConf(**{key: converted(f"data.{key}", value) for key, value in entry.items() if key in keys})


def _read(key: str, conf: SourceConf, demo: Path, of: str = "") -> tuple[OwnRows, list[Any]]:
    """Documents, and the rows that they are made of, in the order in which data.shuffle_seed would have them."""
    at = replace(conf, path=str(demo)) if conf.path == "demo" else conf
    try:
        part = Part(at, open_source(at, f"{key}.{of}path", f"{key}.{of}split"), lambda row: row, at.max_rows)
        taken = {item.position: item for item in part.items()}
        raw = {number: row for number, (_, _, row) in enumerate(part.source) if number in taken}
    except ConfigError as error:
        raise ConfigError([_of_task(said, key) for said in error.sentences]) from None
    order = list(taken) if part.order is None else part.order.tolist()
    docs, wrong = [], []
    for item in (taken[position] for position in order):
        try:
            docs.append(_document(item))
        except ValueError as error:
            wrong.append(f"{item.place}: {_of_task(str(error), key)}.")
    if wrong:
        raise bad_rows(wrong)
    if not docs:
        raise ConfigError(f"{part.source.label} has no rows.")
    rows = OwnRows(docs, [taken[position].place for position in order])
    _refuse_mixed(rows)
    return rows, [raw[position] for position in order]


def _of_task(said: str, key: str) -> str:
    """A sentence about the data group, about a task's keys."""
    said = said.replace(", or set data.formatter", "")
    return re.sub(r"\bdata\.(columns|name|revision)\b", rf"{key}.\1", said)


def _document(item: Item) -> Document:
    """Raises ValueError in words that finish the sentence "row 3: ..."."""
    row = item.example
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Chat):
        if not row.prompt:
            return {"prompt": "", "delimiter": "", "answer": row.completion}
        return {"prompt": row.prompt, "delimiter": _leading(row.completion), "answer": row.completion.strip()}
    last = row.messages[-1]
    more = sorted(last.keys() & {"tool_calls", "reasoning_content"})
    if more:
        raise ValueError(f"its last answer has {more[0]}, and what a task asks for is text: leave the row out")
    asked = [turn["content"] for turn in row.messages[:-1] if turn["role"] != "system"]
    whole = {"messages": row.messages, **({"tools": row.tools} if row.tools else {})}
    return {**whole, "prompt": "\n\n".join(asked), "delimiter": " ", "answer": last["content"].strip()}


def _leading(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


def _refuse_mixed(rows: OwnRows) -> None:
    """Plain texts, prompts with completions, and conversations are asked about in different ways."""
    kinds = [("messages" in doc, bool(doc["prompt"])) for doc in rows.docs]
    other = next((place for place, kind in zip(rows.places, kinds, strict=True) if kind != kinds[0]), None)
    if other:
        raise ConfigError(f"{other} is of another kind than {rows.places[0]}: a task's rows are all of one kind.")


def _add_choices(rows: OwnRows, key: str, choices: Any, raw: list[Any]) -> None:
    """Raises ConfigError for choices that aren't there, or that an answer is not among."""
    answers = sorted({doc["answer"] for doc in rows.docs})
    if choices is None and not 2 <= len(answers) <= MOST_CHOICES:
        raise ConfigError(
            f"{key}: its rows have {len(answers)} different answers, and without {key}.choices they are the choices "
            f"where there are 2 to {MOST_CHOICES}: set {key}.choices to a list of texts, or to the name of a column that "
            "holds one."
        )
    wrong = []
    for doc, place, row in zip(rows.docs, rows.places, raw, strict=True):
        given = row.get(choices) if isinstance(choices, str) else choices
        found = [str(one).strip() for one in given] if isinstance(given, list) else given or answers
        if isinstance(choices, str) and (not isinstance(given, list) or len(set(found)) < max(len(found), 2)):
            wrong.append(
                f"{place}: {key}.choices={choices} must name a column with a list of two or more texts that all differ, found {given!r:.60}."
            )
        elif doc["answer"] not in found:
            wrong.append(f"{place}: the answer {doc['answer']!r:.60} is not among the choices {', '.join(found)}.")
        doc["choices"] = found
    if wrong:
        raise bad_rows(wrong)
