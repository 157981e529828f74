"""Rows, files and settings of data that can't be trained on: the exact words, and that nothing is left behind."""

import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}
EXCHANGE = {"messages": [USER, ANSWER]}
GOOD = json.dumps(EXCHANGE)
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hi."}]}
PAIR, TASK = {"prompt": "Hi?", "completion": "Hi."}, {"instruction": "Hi?", "output": "Hi."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}


@dataclass(frozen=True)
class Bad:
    """Files, what is typed, and the lines on stderr; {here} in these is the folder that the command is typed in."""

    files: dict[str, bytes | Callable[[Path], Any]]
    arguments: list[str]
    said: list[str]


def jsonl(*rows: Any) -> bytes:
    """A row a line, those that are text as they stand."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def file(name: str, content: bytes | Callable[[Path], Any], said: str, *more: str) -> Bad:
    """One file, and what is said after its path."""
    return Bad({name: content}, [f"data.path={name}", *more], [f"{{here}}/{name}{said}"])


@dataclass(frozen=True)
class Row:
    """A row that follows a sound one, and what is said of it; {n} in it is its line."""

    row: Any
    said: str
    after: Any


def second(row: Any, said: str, after: Any = EXCHANGE) -> Row:
    return Row(row, said, after)


def first(row: Any, said: str, *more: str) -> Bad:
    """A row of a format of its own."""
    return file("a.jsonl", jsonl(row), f", row 1: {said}", *more)


def turns(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


def settings(*arguments: str, said: str, files: dict[str, bytes | Callable[[Path], Any]] | None = None) -> Bad:
    """What is wrong before a row is read; a.jsonl and b.jsonl are there."""
    return Bad(
        {"a.jsonl": jsonl(EXCHANGE), "b.jsonl": jsonl(EXCHANGE, EXCHANGE), **(files or {})}, list(arguments), [said]
    )


def mix(entry: str, said: str, weight: int | None = None) -> Bad:
    """An entry that follows a sound one, and what is said after the words that were typed."""
    typed = f"data.mix=[{{path: a.jsonl{'' if weight is None else f', weight: {weight}'}}}, {entry}]"
    return settings(typed, said=f"{typed}: {said}")


def folder(*names: str, said: str, more: Sequence[str] = ()) -> Bad:
    return Bad({f"rows/{name}": jsonl(EXCHANGE) for name in names}, ["data.path=rows", *more], [said])


def saved(made: Callable[[], Dataset | DatasetDict], *more: str, said: str) -> Bad:
    """A folder that the library datasets wrote."""
    return Bad({"rows": lambda folder: made().save_to_disk(folder)}, ["data.path=rows", *more], [said])


def dataset(*rows: Any) -> Dataset:
    return Dataset.from_list([EXCHANGE, *rows])


def sharegpt(call: str) -> dict[str, Any]:
    said = [("human", "Hi?"), ("function_call", call), ("observation", "5"), ("gpt", "Hi.")]
    return {"conversations": [{"from": who, "value": what} for who, what in said]}


def formatter(name: str, said: str) -> Bad:
    """A function of the module bad_data, and what is said after the file's path."""
    return Bad(
        {"a.jsonl": jsonl(EXCHANGE), **OWN},
        ["data.path=a.jsonl", f"data.formatter=bad_data:{name}"],
        [f"{{here}}/a.jsonl{said}"],
    )


def arrow(table: pa.Table, *, stream: bool = False) -> bytes:
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def not_utf8() -> pa.Table:
    """Rows Hi? and Hi., then one with a prompt in Latin-1, as other programs write them unchecked."""
    prompts, answers = [b"Hi?", "café".encode("latin-1")], ["Hi.", "Hi."]
    offsets = pa.array([0, 3, 7], pa.int32()).buffers()[1]
    texts = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"".join(prompts)))
    return pa.table({"prompt": texts, "completion": answers})


TABLE = pa.table({"messages": [EXCHANGE["messages"]] * 50})
OWN = {
    "bad_data.py": b"""\
def fails(row):
    raise KeyError("question\\nand more")


def fails_in_lines(row):
    raise ValueError("one\\ntwo")


def nothing(row):
    return None


def text(row):
    return str(len(row))


def half(row):
    return row["messages"][:1]


NUMBER = 5
"""
}
UNKNOWN = "name them, as in +data.columns.messages=chat, or set data.formatter."
EMPTY = "the content of a message is text that is not empty, found"
ROLES = "a role is one of system, user, assistant, tool, found"
KINDS = ".jsonl, .json, .csv, .tsv, .parquet, .arrow"
ONLY_TEXT = "plain text has no turns to supervise with data.loss=assistant: set data.loss=all."

BAD: dict[str, dict[str, Bad | Row]] = {
    "not JSON": {
        "a line": second("{oops", "line {n} is not JSON: Expecting property name enclosed in double quotes."),
        "after blank lines": file("a.jsonl", f"{GOOD}\n\n\n{GOOD},\n".encode(), ", row 2: line 4 is not JSON: Extra data."),
        "cut off": second(GOOD[:40], "line {n} is not JSON: Expecting ':' delimiter."),
        "a file": file("a.json", f"[{GOOD},\noops]".encode(), ", line 2 is not JSON: Expecting value."),
        "a line too deep": second("[" * 100_000, "line {n} is nested too deeply."),
        "a file too deep": file("a.json", b"[" * 100_000, " is nested too deeply."),
        "digits in a line": second(f'{{"n": {"1" * 5000}}}', "line {n} holds a number of too many digits."),
        "digits in a file": file("a.json", f'[{{"n": {"1" * 5000}}}]'.encode(), " holds a number of too many digits."),
    },
    "not UTF-8": {
        "a line": file(
            "a.jsonl", jsonl(EXCHANGE) + GOOD.replace("Hi.", "café").encode("latin-1"),
            ", row 2: line 2 is not UTF-8: invalid continuation byte.",
        ),
        "a file": file(
            "a.json", f'[{GOOD},\n"café"]'.encode("latin-1"), ", line 2 is not UTF-8: invalid continuation byte."
        ),
        "a table of text": file(
            "a.csv", "prompt,completion\ncafé,Hi.\n".encode("latin-1"), ", line 2 is not UTF-8: invalid continuation byte."
        ),
        "Parquet": file(
            "a.parquet", parquet(not_utf8()),
            ", row 2: it can't be read: 'utf-8' codec can't decode byte 0xe9 in position 3: unexpected end of data.",
        ),
    },
    "UTF-16": {
        "lines": file("a.jsonl", GOOD.encode("utf-16"), ", row 1: line 1 is not UTF-8: invalid start byte."),
        "a file": file("a.json", f"[{GOOD}]".encode("utf-16"), ", line 1 is not UTF-8: invalid start byte."),
        "a table": file("a.csv", "text\nHi.\n".encode("utf-16"), ", line 1 is not UTF-8: invalid start byte."),
    },
    "half a character": {
        "a message": second(
            turns(USER, {"role": "assistant", "content": "cut \ud83d"}),
            r"it holds '\ud83d', a half of a character: leave it out, or write the whole one.",
        ),
        "plain text": first(
            {"text": "\udc4d"}, r"it holds '\udc4d', a half of a character: leave it out, or write the whole one.",
            "data.loss=all",
        ),
        "tools": second(
            {**EXCHANGE, "tools": [{"name": "\ud83d"}]},
            r"it holds '\ud83d', a half of a character: leave it out, or write the whole one.",
        ),
    },
    "role": {
        "unknown": second(turns(USER, {**ANSWER, "role": "robot"}), f"{ROLES} 'robot'."),
        "its case": second(turns({**USER, "role": "User"}, ANSWER), f"{ROLES} 'User'."),
        "a list": second(turns({**USER, "role": ["user"]}, ANSWER), f"{ROLES} ['user']."),
        "null": second(turns({**USER, "role": None}, ANSWER), f"{ROLES} None."),
        "of ShareGPT": second({"conversations": [{"from": "humann", "value": "Hi?"}]}, f"{ROLES} 'humann'.", SHAREGPT),
    },
    "order": {
        "two questions": second(
            turns(USER, USER, ANSWER), "two user messages follow one another: join them, or leave one out."
        ),
        "two answers": second(
            turns(USER, ANSWER, ANSWER), "two assistant messages follow one another: join them, or leave one out."
        ),
        "system in between": second(
            turns(USER, {"role": "system", "content": "Be brief."}, ANSWER),
            "a system message comes first, found one after 'user'.",
        ),
        "an answer first": second(turns(ANSWER, USER, ANSWER), "the first message must be the user's, found 'assistant'."),
        "an answer after system": second(
            turns({"role": "system", "content": "Be brief."}, ANSWER),
            "the first message must be the user's, found 'assistant'.",
        ),
        "a question last": second(
            turns(USER, ANSWER, USER), "the last message must be the assistant's, found 'user'."
        ),
    },
    "content": {
        "empty": second(turns(USER, {**ANSWER, "content": ""}), f"{EMPTY} ''."),
        "blank": second(turns({**USER, "content": " \n"}, ANSWER), rf"{EMPTY} ' \n'."),
        "null": second(turns(USER, {**ANSWER, "content": None}), f"{EMPTY} None."),
        "a number": second(turns(USER, {**ANSWER, "content": 5}), f"{EMPTY} 5."),
        "an image": second(
            turns({**USER, "content": [{"type": "image", "url": "x.png"}]}, ANSWER),
            f"{EMPTY} [{{'type': 'image', 'url': 'x.png'}}].",
        ),
        "text and an image": second(
            turns({**USER, "content": [{"type": "text", "text": "What?"}, {"type": "image"}]}, ANSWER),
            f"{EMPTY} [{{'type': 'text', 'text': 'What?'}}, {{'type': 'image'}}].",
        ),
        "a part without text": second(
            turns({**USER, "content": [{"type": "text", "text": None}]}, ANSWER),
            f"{EMPTY} [{{'type': 'text', 'text': None}}].",
        ),
        "none": second(turns({"role": "user"}, ANSWER), "a message needs role and content, found {'role': 'user'}."),
    },
    "messages": {
        "a text": second({"messages": "Hi?"}, "messages must be a list, or JSON of one, found 'Hi?'."),
        "a mapping": second(
            {"messages": USER},
            "messages must be a list of messages that is not empty, found {'role': 'user', 'content': 'Hi?'}.",
        ),
        "null": second({"messages": None}, "messages must be a list of messages that is not empty, found None."),
        "none": second({"messages": []}, "messages must be a list of messages that is not empty, found []."),
        "a text among them": second(turns("Hi?", ANSWER), "a message needs role and content, found 'Hi?'."),
        "no role": second(
            turns({"content": "Hi?"}, ANSWER), "a message needs role and content, found {'content': 'Hi?'}."
        ),
        "of ShareGPT's form": second(
            turns({"from": "human", "value": "Hi?"}), "a message needs role and content, found {'from': 'human', 'value': 'Hi?'}."
        ),
        "a cell": file(
            "a.csv", b"messages\n[oops\n", ", row 1: messages must be a list, or JSON of one, found '[oops'."
        ),
        "a blank cell": file(
            "a.csv", b"messages,n\n ,1\n",
            ", row 1: messages must be a list of messages that is not empty, found None.",
        ),
    },
    "no row": {
        "a list": second([1, 2], "a row is an object with named columns, found [1, 2]."),
        "a text": second('"messages"', "a row is an object with named columns, found 'messages'."),
        "null": file(
            "a.json", f"[{GOOD}, null]".encode(), ", row 2: a row is an object with named columns, found None."
        ),
    },
    "mixed": {
        "the third row": file(
            "a.jsonl", jsonl(EXCHANGE, EXCHANGE, {"instruction": "Hi?", "output": "Hi."}),
            ", row 3: no column 'messages', found instruction, output; set +data.columns.messages=NAME.",
        ),
        "the second file": Bad(
            {"a.jsonl": jsonl(EXCHANGE), "b.csv": b"prompt,completion\nHi?,Hi.\n"}, ["data.path=?.*"],
            ["{here}/b.csv, row 1: no column 'messages', found completion, prompt; set +data.columns.messages=NAME."],
        ),
    },
    "columns": {
        "unknown": first({"question": "Hi?", "answer": "Hi."}, f"no format is known with the columns answer, question: {UNKNOWN}"),
        "none": first({}, f"no format is known with no columns: {UNKNOWN}"),
        "half of a format": first(
            {"instruction": "Hi?", "answer": "Hi."}, f"no format is known with the columns answer, instruction: {UNKNOWN}"
        ),
        "a mapped one": first(
            EXCHANGE, "no column 'chat', found messages; set +data.columns.messages=NAME.", "+data.columns.messages=chat"
        ),
        "a mapped one beside text": first(
            {"text": "Hi.", "chat": []},
            f"no format is known with the columns chat, text and data.columns={{messages: caht}}: {UNKNOWN}",
            "+data.columns.messages=caht",
        ),
        "of a chosen format": first(
            EXCHANGE, "no column 'instruction', found messages; set +data.columns.instruction=NAME.", "data.format=alpaca"
        ),
        "a mapped name that is none": settings(
            "data.path=a.jsonl", "data.format=text", "data.loss=all", "+data.columns.txt=body",
            said="+data.columns.txt=body: data.columns maps text to the rows' own names, found 'txt' (did you mean text?).",
        ),
        "a mapped number": settings(
            "data.path=a.jsonl", "+data.columns.messages=5", said="+data.columns.messages=5: data.columns.messages is the name of a column, found 5."
        ),
    },
    "CSV": {
        "too few fields": file(
            "a.csv", b"prompt,completion\nHi?,Hi.\nHi?\n", ", row 2: 1 fields (line 3), and the first line names 2 columns."
        ),
        "too many fields": file(
            "a.csv", b'prompt,completion\n"Hi?\nHi?",Hi.\nHi?,Hi.,Hi.\n',
            ", row 2: 3 fields (line 4), and the first line names 2 columns.",
        ),
        "too many fields, tabs": file(
            "a.tsv", b"prompt\tcompletion\nHi?\tHi.\t\n", ", row 1: 3 fields (line 2), and the first line names 2 columns."
        ),
        "an open quote": file(
            "a.csv", b'prompt,completion\nHi?,Hi.\n"Hi?,Hi.\nHi?,Hi.\nHi?,Hi.\n',
            ", in the row that begins in line 3: unexpected end of data.",
        ),
        "text after a quote": file(
            "a.csv", b'prompt,completion\n"Hi"?,Hi.\n', ", in the row that begins in line 2: ',' expected after '\"'."
        ),
        "a column twice": file(
            "a.csv", b"text,text\nHi.,Hi.\n", ": a column's name stands twice in the first line, text, text."
        ),
    },
    "Parquet and Arrow": {
        "no Parquet": file(
            "a.parquet", jsonl(EXCHANGE),
            " can't be read as parquet: Parquet magic bytes not found in footer. Either the file is corrupted or this is "
            "not a parquet file.",
        ),
        "Parquet, cut off": file(
            "a.parquet", parquet(TABLE)[:-30],
            " can't be read as parquet: Parquet magic bytes not found in footer. Either the file is corrupted or this is "
            "not a parquet file.",
        ),
        "an Arrow file, cut off": file(
            "a.arrow", arrow(TABLE)[:-30],
            " can't be read as arrow: Expected to read 1330795073 metadata bytes, but only read 2824.",
        ),
        "an Arrow stream, cut off": file("a.arrow", arrow(TABLE, stream=True)[:-300],
            " can't be read as arrow: Expected to be able to read 1984 bytes for message body, got 1692.",
        ),
        "an empty Arrow file": file(
            "a.arrow", b"", " can't be read as arrow: Tried reading schema message, was null or length 0."
        ),
    },
    "gzip": {
        "cut off": file(
            "a.jsonl.gz", gzip.compress(jsonl(*[EXCHANGE] * 50))[:-20],
            " is no whole gzip file: Compressed file ended before the end-of-stream marker was reached.",
        ),
        "none": file("a.jsonl.gz", jsonl(EXCHANGE), """ is no whole gzip file: Not a gzipped file (b'{"')."""),
        "damaged": file("a.csv.gz", gzip.compress(b"text\nHi.\n")[:-8] + b"12345678",
            " is no whole gzip file: CRC check failed 0x34333231 != 0x24bd81dd.",
        ),
        "of Parquet": file("a.parquet.gz", gzip.compress(parquet(TABLE)),
            " can't be read as parquet: Parquet magic bytes not found in footer. Either the file is corrupted or this is "
            "not a parquet file.",
        ),
    },
    "ending": {
        name: settings(f"data.path={name}", said=f"data.path: {{here}}/{name} is none of the kinds that are read: {KINDS}.", files={name: b"Hi."})
        for name in ("a.txt", "a.jsonl.zst", "a.xml", "a.gz", "rows")
    },
    "no rows": {
        "lines": file("a.jsonl", b"", " has no rows."),
        "blank lines": file("a.jsonl", b" \n\n", " has no rows."),
        "a file": file("a.json", b"\n", " has no rows."),
        "a list": file("a.json", b"[]", " has no rows."),
        "a table": file("a.csv", b"prompt,completion\n", " has no rows."),
        "gzip": file("a.jsonl.gz", gzip.compress(b""), " has no rows."),
        "Parquet": file("a.parquet", parquet(TABLE.slice(0, 0)), " has no rows."),
        "of one of several": settings(
            "data.mix=[{path: a.jsonl}, {path: c.jsonl}]", said="{here}/c.jsonl has no rows.", files={"c.jsonl": b""}
        ),
        "of a weighted one of several": settings(
            "data.mix=[{path: a.jsonl, weight: 1}, {path: c.jsonl, weight: 1}]",
            said="{here}/c.jsonl has no rows.", files={"c.jsonl": b""},
        ),
    },
    "no list": {
        "an object": file("a.json", GOOD.encode(), " must hold a list of rows, found dict; a row a line is .jsonl."),
        "a number": file("a.json", b"5", " must hold a list of rows, found int; a row a line is .jsonl."),
    },
    "folder": {
        "without the split": folder(
            "train.jsonl", "test.jsonl",
            said="data.split=dev: {here}/rows must hold one file dev.jsonl (or of another kind), or several dev-*.jsonl, "
            "found test.jsonl, train.jsonl; all of a folder's files are data.path='{here}/rows/*.jsonl'.",
            more=["data.split=dev"],
        ),
        "two kinds": folder(
            "train-1.jsonl", "train-2.json",
            said="data.split=train: {here}/rows must hold one file train.jsonl (or of another kind), or several "
            "train-*.jsonl, found train-1.jsonl, train-2.json; all of a folder's files are "
            "data.path='{here}/rows/*.jsonl'.",
        ),
        "two of one name": folder(
            "train.jsonl", "data/train.jsonl",
            said="data.split=train: {here}/rows must hold one file train.jsonl (or of another kind), or several "
            "train-*.jsonl, found train.jsonl, train.jsonl; all of a folder's files are "
            "data.path='{here}/rows/*.jsonl'.",
        ),
        "many files": folder(
            *[f"part{n:02}.jsonl" for n in range(12)],
            said="data.split=train: {here}/rows must hold one file train.jsonl (or of another kind), or several "
            f"train-*.jsonl, found {', '.join(f'part{n:02}.jsonl' for n in range(10))}, …; all of a folder's files are "
            "data.path='{here}/rows/*.jsonl'.",
        ),
        "nothing that is read": folder(
            "readme.md",
            said="data.split=train: {here}/rows must hold one file train.jsonl (or of another kind), or several "
            f"train-*.jsonl, found none of {KINDS}; all of a folder's files are data.path='{{here}}/rows/*.jsonl'.",
        ),
    },
    "saved dataset": {
        "without the split": saved(
            lambda: DatasetDict(train=dataset(), test=dataset()),
            "data.split=dev", said="data.split=dev: {here}/rows has the splits train, test.",
        ),
        "without splits": saved(
            dataset,
            "data.split=dev", said="data.split=dev: {here}/rows holds a dataset without splits: leave it out.",
        ),
        "with a bad row": saved(
            lambda: dataset(turns(USER)),
            said="{here}/rows, row 2: the last message must be the assistant's, found 'user'.",
        ),
        "damaged": Bad(
            {"rows/state.json": b"{}", "rows/dataset_info.json": b"{}"}, ["data.path=rows"],
            ["data.path={here}/rows is no dataset that can be loaded: '_data_files'."],
        ),
    },
    "path": {
        "no file": settings("data.path=gone.jsonl", said="data.path=gone.jsonl: there is no such file."),
        "no file of another kind": settings("data.path=gone.txt", said="data.path=gone.txt: there is no such file."),
        "no folder": settings("data.path=./gone", said="data.path=./gone: there is no such file."),
        "no folder at home": settings("data.path='~/gone'", said="data.path=~/gone: there is no such file."),
        "a pattern": settings("data.path=*.csv", said="data.path={here}/*.csv: there is no file of that pattern."),
        "a split of a file": settings(
            "data.path=a.jsonl", "data.split=test",
            said="data.split=test is for a folder or a dataset, and {here}/a.jsonl is a file: leave it out.",
        ),
        "a validation split of a file": settings(
            "data.path=a.jsonl", "data.validation_split=test",
            said="data.validation_split=test is for a folder or a dataset, and {here}/a.jsonl is a file: leave it out.",
        ),
        "a commit of a file": settings(
            "data.path=a.jsonl", "data.revision=main",
            said="data.revision=main is for data on the hub, and data.path={here}/a.jsonl is here: leave it out.",
        ),
        "a configuration of a file": settings(
            "data.path=a.jsonl", "data.name=en",
            said="data.name=en is for data on the hub, and data.path={here}/a.jsonl is here: leave it out.",
        ),
        "packed": settings("data.path=gone.tar.gz", said="data.path=gone.tar.gz: there is no such file."),
        "none": settings(said="no data is named: set data.path=FILE, or choose data=demo."),
    },
    "text": {
        "with an assistant's loss": settings(
            "data.path=a.jsonl", "data.format=text",
            said="data.format=text has no turns that data.loss=assistant could supervise: set data.loss=all.",
        ),
        "found, with an assistant's loss": first({"text": "Hi."}, ONLY_TEXT),
        "blank": first({"text": " "}, "text must be text that is not empty, found ' '.", "data.loss=all"),
        "null": first({"text": None}, "text must be text that is not empty, found None.", "data.loss=all"),
    },
    "prompt and completion": {
        "of different types": second(
            {"prompt": "Hi?", "completion": [ANSWER]},
            "prompt and completion must both be text, or both lists of messages, found str and list.", PAIR
        ),
        "null": second(
            {"prompt": "Hi?", "completion": None},
            "prompt and completion must both be text, or both lists of messages, found str and NoneType.", PAIR
        ),
        "an empty completion": second(
            {"prompt": "Hi?", "completion": ""}, "completion must be text that is not empty, found ''.", PAIR
        ),
        "a completion without messages": second(
            {"prompt": [USER, ANSWER], "completion": []},
            "completion must be text, or a list of messages, that is not empty, found [].", PAIR
        ),
        "a completion that asks": second(
            {"prompt": [USER], "completion": [USER]},
            "two user messages follow one another: join them, or leave one out.", PAIR
        ),
    },
    "Alpaca": {
        "history of texts": second(
            {"instruction": "Hi?", "output": "Hi.", "history": ["Hello?", "Hello."]},
            "history must be a list of [question, answer], found ['Hello?', 'Hello.'].", TASK
        ),
        "history of three": second(
            {"instruction": "Hi?", "output": "Hi.", "history": [["Hello?", "Hello.", "Bye."]]},
            "history must be a list of [question, answer], found [['Hello?', 'Hello.', 'Bye.']].", TASK
        ),
        "no output": second({"instruction": "Hi?", "output": ""}, "output must be text that is not empty, found ''.", TASK),
        "an input that is a number": second(
            {"instruction": "Hi?", "input": 5, "output": "Hi."}, "input must be text, found 5.", TASK
        ),
    },
    "tools": {
        "a mapping": second(
            {**EXCHANGE, "tools": {"name": "f"}}, "tools must be a list of JSON schemas, found {'name': 'f'}."
        ),
        "texts": second({**EXCHANGE, "tools": ["f"]}, "tools must be a list of JSON schemas, found ['f']."),
        "no JSON": second({**EXCHANGE, "tools": "f(x)"}, "tools must be a list, or JSON of one, found 'f(x)'."),
    },
    "calls": {
        "an answer without one": second(
            turns(USER, {"role": "tool", "content": "5"}, ANSWER),
            "a tool's message follows the assistant's tool_calls, found one after 'user'.",
        ),
        "an answer to plain text": second(
            turns(USER, ANSWER, {"role": "tool", "content": "5"}, ANSWER),
            "a tool's message follows the assistant's tool_calls, found one after 'assistant'.",
        ),
        "the user's": second(
            turns({**CALL, "role": "user"}, ANSWER),
            "tool_calls is a list of calls in an assistant's message, found [{'type': 'function', 'function': {'name': 'f'}}].",
        ),
        "a text": second(
            turns(USER, {**CALL, "tool_calls": "f()"}),
            "tool_calls is a list of calls in an assistant's message, found 'f()'.",
        ),
        "of ShareGPT, no JSON": second(
            sharegpt("f()"), "a function_call is JSON with name and arguments, found 'f()'.", SHAREGPT
        ),
        "of ShareGPT, no name": second(
            sharegpt('{"arguments": {}}'),
            "a function_call is JSON with name and arguments, found '{\"arguments\": {}}'.",
            SHAREGPT,
        ),
        "of ShareGPT, too deep": second(
            sharegpt("[" * 100_000), f"a function_call is JSON with name and arguments, found '{'[' * 59}.", SHAREGPT
        ),
    },
    "weight of a message": {
        "above 1": second(turns(USER, {**ANSWER, "weight": 2}), "the weight of a message is 0 or 1, found 2."),
        "between": second(turns(USER, {**ANSWER, "weight": 0.5}), "the weight of a message is 0 or 1, found 0.5."),
        "a text": second(turns(USER, {**ANSWER, "weight": "0"}), "the weight of a message is 0 or 1, found '0'."),
    },
    "formatter": {
        "that fails": formatter("fails", ", row 1: data.formatter=bad_data:fails failed: KeyError: 'question\\nand more'."),
        "that fails in lines": formatter("fails_in_lines", ", row 1: data.formatter=bad_data:fails_in_lines failed: ValueError: one two."),
        "that gives nothing": formatter("nothing", ", row 1: a row is an object with named columns, found None."),
        "that gives no row": formatter("text", ", row 1: a row is an object with named columns, found '1'."),
        "that gives half": formatter("half", ", row 1: the last message must be the assistant's, found 'user'."),
        "that is no function": settings(
            "data.path=a.jsonl", "data.formatter=bad_data:NUMBER", files=OWN,
            said="data.formatter=bad_data:NUMBER must be a function that takes a row.",
        ),
        "that isn't there": settings(
            "data.path=a.jsonl", "data.formatter=bad_data:gone", files=OWN,
            said="data.formatter=bad_data:gone: the module bad_data has no gone.",
        ),
    },
    "mix": {
        "no path": mix("{split: train}", "data.mix[1] has no path: give it one, as in data.mix=[{path: a.jsonl}]."),
        "a near name": mix("{path: b.jsonl, wieght: 2}", "there is no key data.mix[1].wieght (did you mean weight?)."),
        "no text": mix("{path: [b.jsonl]}", "data.mix[1].path is a text or null, found ['b.jsonl']."),
        "no number": mix(
            "{path: b.jsonl, max_rows: many}", "data.mix[1].max_rows is a whole number or null, found 'many'."
        ),
        "too few": mix("{path: b.jsonl, max_rows: 0}", "data.mix[1].max_rows is a whole number above 0, found 0."),
        "no mapping": mix("b.jsonl", "data.mix[1] is a mapping with path and what else differs, found 'b.jsonl'."),
        "no format": mix(
            "{path: b.jsonl, format: alpacca}",
            "data.mix[1].format is one of auto, messages, sharegpt, alpaca, prompt_completion, text, found 'alpacca' "
            "(did you mean alpaca?).",
        ),
        "a format that is a list": mix(
            "{path: b.jsonl, format: [text]}", "data.mix[1].format is a text, found ['text']."
        ),
        "no columns": mix("{path: b.jsonl, columns: chat}", "data.mix[1].columns is a mapping of names to values, found 'chat'."),
        "weight 0": mix("{path: b.jsonl, weight: 0}", "data.mix[1].weight is a number above 0, found 0.", weight=1),
        "weight text": mix(
            "{path: b.jsonl, weight: half}", "data.mix[1].weight is a number above 0, found 'half'.", weight=1
        ),
        "weights of some": settings(
            "data.mix=[{path: a.jsonl, weight: 1}, {path: b.jsonl}]",
            said="data.mix=[{path: a.jsonl, weight: 1}, {path: b.jsonl}]: 1 of 2 sources in data.mix have a weight: give "
            "each one, or none.",
        ),
        "a weight that leaves nothing": settings(
            "data.mix=[{path: a.jsonl, weight: 1}, {path: b.jsonl, weight: 9}]",
            said="data.mix[0].weight=1 leaves none of the 1 rows of {here}/a.jsonl, as no row is taken twice: give it a "
            "larger weight.",
        ),
        "beside a path": settings(
            "data.path=a.jsonl", "data.mix=[{path: b.jsonl}]",
            said="data.path=a.jsonl and data.mix both name the rows: set data.path=null, or leave data.mix out.",
        ),
        "no file": settings(
            "data.mix=[{path: a.jsonl}, {path: gone.jsonl}]", said="data.mix[1].path=gone.jsonl: there is no such file."
        ),
        "a number for a path": Bad(
            {"2024/train.jsonl": jsonl(EXCHANGE)},
            ["data.mix=[{path: 2024.jsonl}, {path: 2024}]"],
            ["data.mix[0].path=2024.jsonl: there is no such file."],
        ),
        "a split of a file": settings(
            "data.mix=[{path: a.jsonl}, {path: b.jsonl, split: test}]",
            said="data.mix[1].split=test is for a folder or a dataset, and {here}/b.jsonl is a file: leave it out.",
        ),
        "a bad row": settings(
            "data.mix=[{path: a.jsonl}, {path: c.jsonl}]",
            said="{here}/c.jsonl, row 1: the last message must be the assistant's, found 'user'.",
            files={"c.jsonl": jsonl(turns(USER))},
        ),
    },
    "validation": {
        "a share and a path": settings(
            "data.path=a.jsonl", "data.validation_share=0.1", "data.validation_path=b.jsonl",
            said="data.validation_share=0.1 holds rows out, and b.jsonl names others: leave out one.",
        ),
        "the training rows": settings(
            "data.path=a.jsonl", "data.validation_path=./a.jsonl",
            said="the validation rows are the training rows, split train of {here}/a.jsonl: name others, or set "
            "data.validation_share=0.1.",
        ),
        "the same split": settings(
            "data.path=rows", "data.split=test", "data.validation_split=test",
            said="data.validation_split=test: the validation rows are the training rows, split test of rows: name "
            "others, or set data.validation_share=0.1.",
            files={"rows/test.jsonl": jsonl(EXCHANGE)},
        ),
        "a split of several": settings(
            "data.mix=[{path: a.jsonl}, {path: b.jsonl}]", "data.validation_split=test",
            said="data.validation_split=test: data.validation_split is of one source, and data.mix names several: set "
            "data.validation_path too.",
        ),
        "no share": settings(
            "data.path=a.jsonl", "data.validation_share=1",
            said="data.validation_share=1: data.validation_share is a finite number above 0 and below 1, found 1.0.",
        ),
        "no file": settings(
            "data.path=a.jsonl", "data.validation_path=gone.jsonl",
            said="data.validation_path=gone.jsonl: there is no such file.",
        ),
        "a bad row": settings(
            "data.path=a.jsonl", "data.validation_path=c.jsonl",
            said="{here}/c.jsonl, row 2: the last message must be the assistant's, found 'user'.",
            files={"c.jsonl": jsonl(EXCHANGE, turns(USER))},
        ),
        "no rows": settings(
            "data.path=a.jsonl", "data.validation_path=c.jsonl", said="{here}/c.jsonl has no rows.",
            files={"c.jsonl": b""},
        ),
    },
    "no effect": {
        "a share of bad rows": settings(
            "data.path=a.jsonl", "data.max_bad_share=0.5",
            said="data.max_bad_share=0.5: data.max_bad_share has no effect with data.on_bad_row=error: set skip.",
        ),
        "steps between evaluations": settings(
            "data.path=a.jsonl", "trainer.eval_steps=5",
            said="trainer.eval_steps=5 has no effect without validation rows: set data.validation_share=0.1.",
        ),
        "rows at an evaluation": settings(
            "data.path=a.jsonl", "trainer.per_device_eval_batch_size=5",
            said="trainer.per_device_eval_batch_size=5 has no effect without validation rows: set "
            "data.validation_share=0.1.",
        ),
    },
    "all rows bad": {
        "with skip": first(turns(USER), "the last message must be the assistant's, found 'user'.", "data.on_bad_row=skip"),
    },
}  # fmt: skip


ROWS_NAMED = 3  # by one command


def commands() -> Iterator[Any]:
    """What is refused by itself, and rows of one kind in one file, as many as an error names."""
    for kind, ones in BAD.items():
        yield from (pytest.param(bad, id=f"{kind}, {name}") for name, bad in ones.items() if isinstance(bad, Bad))
        rows = [(name, row) for name, row in ones.items() if isinstance(row, Row)]
        for after, group in groupby(rows, key=lambda named: named[1].after):
            alike = list(group)
            for at in range(0, len(alike), ROWS_NAMED):
                three = alike[at : at + ROWS_NAMED]
                said = [
                    f"{{here}}/a.jsonl, row {n}: {row.said.replace('{n}', str(n))}"
                    for n, (_, row) in enumerate(three, 2)
                ]
                bad = Bad({"a.jsonl": jsonl(after, *(row.row for _, row in three))}, ["data.path=a.jsonl"], said)
                yield pytest.param(bad, id=f"{kind}, {'; '.join(name for name, _ in three)}")


def put(files: dict[str, bytes | Callable[[Path], Any]], folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
    capfd.readouterr()  # a bar of the library's


def arguments(tiny: Path, *more: str) -> list[str]:
    return [
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", "quantization=none", "run_dir=run", "stages=[prepare]",
        *more,
    ]  # fmt: skip


@pytest.mark.parametrize("bad", list(commands()))
def test_what_is_refused(bad: Bad, tiny: Path, refused: Callable[..., str], tmp_path: Path, capfd) -> None:
    put(bad.files, tmp_path, capfd)
    said = refused(*arguments(tiny, *bad.arguments))
    assert said.splitlines() == [f"hydratune: {line.replace('{here}', str(tmp_path))}" for line in bad.said]


def test_the_table_is_wide() -> None:
    assert len(BAD) >= 14 and sum(map(len, BAD.values())) >= 150
    lines = [
        line
        for ones in BAD.values()
        for bad in ones.values()
        for line in (bad.said if isinstance(bad, Bad) else [bad.said])
    ]
    assert all(line.endswith(".") and not line.endswith("..") and "\n" not in line for line in lines)


LONG = turns({"role": "user", "content": "What is fern? " * 40}, ANSWER)
ROWS = [turns({"role": "user", "content": f"What is number {n}?"}, ANSWER) for n in range(60)]
# what only the rendered rows show: the rows, what is typed, what is said
UNFIT: dict[str, tuple[list[Any], list[str], list[str]]] = {
    "bad rows above the share": (
        [*ROWS, turns(USER), *ROWS, {}, 5, turns(ANSWER)],
        ["data.on_bad_row=skip", "data.max_bad_share=0.02"],
        [
            "4 of 124 rows can't be trained on, more than data.max_bad_share=0.02 allows; the first:",
            "{here}/a.jsonl, row 61: the last message must be the assistant's, found 'user'.",
            "{here}/a.jsonl, row 122: no column 'messages', found none; set +data.columns.messages=NAME.",
            "{here}/a.jsonl, row 123: a row is an object with named columns, found 5.",
        ],
    ),
    "all rows too long": (
        ROWS, ["data.on_long_row=skip", "trainer.max_length=10"],
        ["No row is left to train on, of 60: 60 above trainer.max_length."],
    ),
    "a long row is an error": (
        [*ROWS, LONG], ["data.on_long_row=error", "trainer.max_length=100"],
        [
            "{here}/a.jsonl, row 61: 229 tokens are above trainer.max_length=100: raise it, or set data.on_long_row=cut."
        ],
    ),
    "nothing left of a long row": (
        [*ROWS, LONG], ["trainer.max_length=100"],
        [
            "{here}/a.jsonl, row 61: no supervised token is left within trainer.max_length=100 of its 229 tokens; raise it, "
            "or set data.on_long_row=skip."
        ],
    ),
    "nothing supervised": (
        [*ROWS, turns(USER, {**ANSWER, "weight": 0})], [], ["{here}/a.jsonl, row 61: nothing in it is supervised."]
    ),
    "validation rows that are the training rows": (
        ROWS, ["data.validation_path=b.jsonl"], ["No row is left to train on, of 120: 60 for validation, 60 validation rows too."]
    ),
    "too small a share": (
        ROWS[:3], ["data.validation_share=0.0001"],
        ["No row is left to validate on, of 3: set a larger data.validation_share, or name other rows."],
    ),
    "beyond the rows that are looked at first": (
        [*ROWS * 167, turns(USER)], [],
        ["{here}/a.jsonl, row 10021: the last message must be the assistant's, found 'user'."],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_what_prepare_refuses(name: str, tiny: Path, tmp_path: Path, environment, monkeypatch, capfd) -> None:
    from hydratune.main import main

    rows, more, said = UNFIT[name]
    put({"a.jsonl": jsonl(*rows), "b.jsonl": jsonl(*rows)}, tmp_path, capfd)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hydratune", *arguments(tiny, "data.path=a.jsonl", *more)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capfd.readouterr().err.splitlines() == [
        f"hydratune: {line.replace('{here}', str(tmp_path))}" for line in said
    ]
    assert (tmp_path / "run" / "run.log").is_file(), "this was found before the stage began"
    assert not list(tmp_path.glob("cache/tokens/*")) and not (tmp_path / "run" / "prepared.json").exists()


@pytest.mark.slow
def test_bad_rows_are_skipped_counted_and_said_up_to_a_share(tiny: Path, hydratune, tmp_path: Path, capfd) -> None:
    put({"a.jsonl": jsonl(*ROWS[:30], turns(USER), "{oops", *ROWS[30:])}, tmp_path, capfd)
    typed = arguments(tiny, "data.path=a.jsonl", "data.on_bad_row=skip")
    done = hydratune(*typed, "data.max_bad_share=0.05")
    assert done.returncode == 0, done.stderr
    row = f"{tmp_path}/a.jsonl, row 31: the last message must be the assistant's, found 'user'."
    assert f"warning: 2 rows can't be trained on and were left out, such as {row}" in done.stdout
    report = json.loads((tmp_path / "run" / "prepared.json").read_text())
    assert report["bad"] == 2 and report["training"]["rows"] == len(ROWS)
    assert report["bad_rows"] == [
        row, f"{tmp_path}/a.jsonl, row 32: line 32 is not JSON: Expecting property name enclosed in double quotes."
    ]  # fmt: skip
    refused = hydratune(*typed, "run_dir=other")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[:2] == [
        "hydratune: 2 of 62 rows can't be trained on, more than data.max_bad_share=0.01 allows; the first:",
        f"hydratune: {row}",
    ]
    assert [path.name for path in (tmp_path / "cache" / "tokens").iterdir()] == [report["tokens"]]
