"""The same rows from files of every kind, folders, saved datasets and the hub's cache."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from hydratune.build.data import training_parts
from hydratune.build.sources import Source, open_source
from hydratune.config.schema import ConfigError, DataConf, SourceConf
from hydratune.formats import Chat

QUESTIONS = [f'What is "{n}", or\n{n}?' for n in range(28)] + [
    "one\u2028two\x85three",
    "tab\there, and a comma; größer 漢字 🙂",
]
ROWS = [
    {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": f"It is {n}."}], "id": n}
    for n, asked in enumerate(QUESTIONS)
]
EXAMPLES = [Chat(row["messages"], 1) for row in ROWS]


def jsonl(rows: list[Any], *, end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def table(delimiter: str = ",", end: str = "\r\n") -> bytes:
    """Fields as a spreadsheet writes them, the messages as JSON."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerows([["messages", "id"], *([json.dumps(row["messages"]), row["id"]] for row in ROWS)])
    return text.getvalue().encode()


def parquet(rows: list[Any], **how: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, **how)
    return bytes(sink.getvalue())


def arrow(rows: list[Any], new: Callable[..., Any]) -> bytes:
    sink = pa.BufferOutputStream()
    made = pa.Table.from_pylist(rows)
    with new(sink, made.schema) as writer:
        for batch in made.to_batches(max_chunksize=7):
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


FILES = {
    "a.jsonl": jsonl(ROWS),
    "ascii.jsonl": "\n".join(json.dumps(row) for row in ROWS).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(ROWS),
    "crlf.jsonl": jsonl(ROWS, end="\r\n"),
    "blank lines.jsonl": jsonl(ROWS, end="\n \n\n"),
    "a.jsonl.gz": gzip.compress(jsonl(ROWS)),
    "two parts.jsonl.gz": gzip.compress(jsonl(ROWS[:9])) + gzip.compress(jsonl(ROWS[9:])),
    "a.json": json.dumps(ROWS).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "a.csv": table(),
    "bom.csv": b"\xef\xbb\xbf" + table(),
    "newlines.csv": b"\n" + table(end="\n").replace(b"\n", b"\n\n", 3),
    "a.csv.gz": gzip.compress(table()),
    "a.tsv": table("\t"),
    "a.parquet": parquet(ROWS),
    "row groups.parquet": parquet(ROWS, row_group_size=4),
    "file.arrow": arrow(ROWS, pa.ipc.new_file),
    "stream.arrow": arrow(ROWS, pa.ipc.new_stream),
}


def examples(path: str, **more: Any) -> list[Any]:
    (part,) = training_parts(DataConf(path=path, **more))
    return [item.example for item in part.items()]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_each_kind(name: str, tmp_path: Path) -> None:
    write(tmp_path, {name: FILES[name]})
    assert examples(str(tmp_path / name)) == EXAMPLES
    source = open_source(SourceConf(path=str(tmp_path / name)))
    assert [(file, number) for file, number, _ in source] == [(str(tmp_path / name), n) for n in range(1, 31)]
    assert source.count == 30 and source.revision is None


FOLDERS: dict[str, tuple[dict[str, bytes], str, str]] = {  # files, the path below the folder, the split
    "a file": ({"train.jsonl": FILES["a.jsonl"], "train_sft.jsonl": b"{}", "test.jsonl": b"{}"}, "", "train"),
    "another split": ({"test_sft.csv": FILES["a.csv"], "test.jsonl": b"{}", "train.jsonl": b"{}"}, "", "test_sft"),
    "shards": (
        {f"train-{n:05}-of-00003.parquet": parquet(ROWS[10 * n : 10 * n + 10]) for n in range(3)}
        | {"test-00000-of-00001.parquet": parquet(ROWS)}, "", "train",
    ),
    "packed shards": ({f"train-{n}.jsonl.gz": gzip.compress(jsonl(ROWS[15 * n : 15 * n + 15])) for n in range(2)}, "", "train"),
    "as on the hub": (
        {"README.md": b"# rows", ".gitattributes": b"", "data/train-00000-of-00001.parquet": FILES["a.parquet"]}, "", "train"
    ),
    "a pattern": ({"x-2.jsonl": jsonl(ROWS[10:]), "x-1.json": json.dumps(ROWS[:10]).encode(), "y.jsonl": b"{}"}, "x-*", "train"),
    "a pattern of folders": (
        {"en/1/a.jsonl": jsonl(ROWS[:10]), "en/2/a.jsonl": jsonl(ROWS[10:]), "de/a.jsonl": b"{}"}, "en/**/*.jsonl", "train"
    ),
    "a name with brackets": ({"a[1].jsonl": FILES["a.jsonl"], "a1.jsonl": b"{}"}, "a[1].jsonl", "train"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_each_kind(name: str, tmp_path: Path) -> None:
    files, below, split = FOLDERS[name]
    write(tmp_path, files)
    assert examples(str(tmp_path / below), split=split) == EXAMPLES
    assert open_source(SourceConf(path=str(tmp_path / below), split=split)).count == 30


SAVED: dict[str, tuple[Callable[[Dataset], Dataset | DatasetDict], str]] = {
    "a dataset": (lambda rows: rows, "train"),
    "splits": (lambda rows: DatasetDict(train=rows.select([0]), test=rows), "test"),
    "a choice of its rows": (lambda rows: Dataset.from_list([*ROWS, *ROWS]).select(range(30)), "train"),
    "a format and a column of another library": (lambda rows: rows.with_format("numpy", columns=["id"]), "train"),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_dataset_of_each_kind(name: str, tmp_path: Path) -> None:
    made, split = SAVED[name]
    made(Dataset.from_list(ROWS)).save_to_disk(
        tmp_path / "saved", num_shards={"train": 1, "test": 3} if split == "test" else 3
    )
    assert examples(str(tmp_path / "saved"), split=split) == EXAMPLES
    source = open_source(SourceConf(path=str(tmp_path / "saved"), split=split))
    assert source.count == 30 and [number for _, number, _ in source] == list(range(1, 31))
    assert len(source.files) == 3


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.csv", "saved"])
def test_rows_keep_their_number_however_many_are_read_at_once(name: str, tmp_path: Path) -> None:
    rows = [{"text": f"row {n}"} for n in range(1, 2501)]
    if name == "saved":
        Dataset.from_list(rows).save_to_disk(tmp_path / name)
    else:
        lines = [b"text", *(row["text"].encode() for row in rows)]
        content = {"a.parquet": parquet(rows, row_group_size=1700), "a.arrow": arrow(rows, pa.ipc.new_stream)}
        write(tmp_path, {name: content.get(name) or (jsonl(rows) if name == "a.jsonl" else b"\n".join(lines))})
    source = open_source(SourceConf(path=str(tmp_path / name)))
    assert [(number, row["text"]) for _, number, row in source] == [(n, f"row {n}") for n in range(1, 2501)]
    assert source.count == 2500


def test_bad_rows_are_counted_too(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": b'{"a": 1}\n\n{oops\n\xff\n{"a": 2}\n', "a.csv": b"a,b\n1,2\n\n1\n3,4\n"})
    for name, kinds in (("a.jsonl", [dict, ValueError, ValueError, dict]), ("a.csv", [dict, ValueError, dict])):
        source = open_source(SourceConf(path=str(tmp_path / name)))
        assert [type(row) for _, _, row in source] == kinds
        assert source.count == len(kinds)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_text_that_is_not_utf8_spoils_its_own_row_alone(name: str, tmp_path: Path) -> None:
    offsets = pa.array([0, 3, 7, 9], pa.int32()).buffers()[1]
    made = pa.table({"text": pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"onecaf\xe9ok"))})
    sink = pa.BufferOutputStream()
    if name == "a.parquet":
        pq.write_table(made, sink)
    else:
        with pa.ipc.new_file(sink, made.schema) as writer:
            writer.write_table(made)
    write(tmp_path, {name: bytes(sink.getvalue())})
    first, second, third = [row for _, _, row in open_source(SourceConf(path=str(tmp_path / name)))]
    assert (first, third) == ({"text": "one"}, {"text": "ok"})
    assert isinstance(second, ValueError) and "can't decode byte 0xe9" in str(second)


def test_what_arrow_marks_as_json_is_read(tmp_path: Path) -> None:
    """As the library datasets writes columns whose values are of no one type."""
    messages = [[json.dumps(turn) for turn in row["messages"]] for row in ROWS]
    flat = pa.ExtensionArray.from_storage(pa.json_(), pa.array([one for row in messages for one in row]))
    lists = pa.ListArray.from_arrays(pa.array(range(0, 61, 2), pa.int32()), flat)
    tools = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['[{"name": "f"}]'] * 15 + [None] * 15))
    pq.write_table(pa.table({"messages": lists, "tools": tools}), tmp_path / "a.parquet")
    expected = [Chat(row["messages"], 1, [{"name": "f"}] if n < 15 else None) for n, row in enumerate(ROWS)]
    assert examples(str(tmp_path / "a.parquet")) == expected


def digest(path: Path, **more: Any) -> list[str]:
    return open_source(SourceConf(path=str(path), **more)).digest()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet", "stream.arrow"])
def test_the_digest_is_of_the_bytes(name: str, tmp_path: Path) -> None:
    content = bytearray(FILES[name])
    write(tmp_path, {name: bytes(content), f"elsewhere/{name}": bytes(content)})
    assert digest(tmp_path / name) == digest(tmp_path / "elsewhere" / name)
    content[len(content) // 2] ^= 1
    write(tmp_path, {f"elsewhere/{name}": bytes(content)})
    assert digest(tmp_path / name) != digest(tmp_path / "elsewhere" / name)


def test_the_digest_of_several_files_tells_their_order(tmp_path: Path) -> None:
    one, two = jsonl(ROWS[:10]), jsonl(ROWS[10:])
    write(
        tmp_path,
        {"a/1.jsonl": one, "a/2.jsonl": two, "b/1.jsonl": one, "b/2.jsonl": two, "c/1.jsonl": two, "c/2.jsonl": one},
    )
    assert digest(tmp_path / "a" / "*") == digest(tmp_path / "b" / "*") != digest(tmp_path / "c" / "*")


def test_the_digest_of_a_saved_dataset_is_of_its_rows(tmp_path: Path) -> None:
    for name, rows in (("a", ROWS), ("b", ROWS), ("c", [*ROWS[:-1], ROWS[0]])):
        DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:3])).save_to_disk(tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    assert digest(tmp_path / "a", split="test") == digest(tmp_path / "c", split="test") != digest(tmp_path / "a")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the library datasets, with some/chats in it; nothing is fetched."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    rows = Dataset.from_list(ROWS)
    write(
        tmp_path / "hub" / "some___chats" / "default" / "0.0.0" / COMMIT,
        {
            "chats-train.arrow": arrow(ROWS, pa.ipc.new_stream),
            "dataset_info.json": json.dumps(
                {
                    "features": rows.features.to_dict(),
                    "builder_name": "parquet",
                    "dataset_name": "chats",
                    "config_name": "default",
                    "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
                    "splits": {"train": {"name": "train", "num_bytes": 1, "num_examples": 30, "dataset_name": "chats"}},
                    "download_checksums": {f"hf://datasets/some/chats@{COMMIT}/data/train.parquet": {"num_bytes": 1}},
                }
            ).encode(),
        },
    )
    return tmp_path / "hub"


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_rows_of_the_hub_know_their_commit(revision: str | None, hub: Path) -> None:
    source = open_source(SourceConf(path="some/chats", revision=revision))
    assert source.revision == COMMIT
    assert [number for _, number, _ in source] == list(range(1, 31)) and source.count == 30
    assert examples("some/chats", revision=revision) == EXAMPLES
    assert source.digest() == open_source(SourceConf(path="some/chats", revision=revision)).digest()


def test_another_commit_than_the_one_that_was_asked_for(hub: Path) -> None:
    """Without the network, the library takes what its cache holds."""
    with pytest.raises(ConfigError) as caught:
        open_source(SourceConf(path="some/chats", revision=COMMIT[::-1]))
    assert caught.value.sentences == [
        f"data.revision={COMMIT[::-1]} of data.path=some/chats can't be reached, and what the cache holds is {COMMIT}."
    ]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["data.path=no/thing"], "The dataset no/thing of data.path is neither here nor in "),
        (["data.path=nothing"], "The dataset nothing of data.path is neither here nor in "),
        (
            ["data.path=some/chats", "data.split=test"],
            """data.path=some/chats, split test: Unknown split "test". Should be one of ['train'].""",
        ),
        (
            ["data.path=some/chats", "data.validation_split=dev"],
            """data.path=some/chats, split dev: Unknown split "dev". Should be one of ['train'].""",
        ),
    ],
    ids=["no such name", "no name of anybody's", "no such split", "no such split to validate on"],
)  # fmt: skip
def test_what_the_hub_does_not_have(
    typed: list[str], said: str, hub: Path, tiny: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    open_source(SourceConf(path="some/chats"))  # which leaves a lock
    model = ["model=local", f"model.name_or_path={tiny}", "quantization=none", "data=jsonl", "run_dir=run"]
    lines = refused(*model, "stages=[prepare]", *typed).splitlines()
    assert lines[-1].startswith(f"hydratune: {said}")
    assert all("some/chats" in line or "cached dataset" in line for line in lines[:-1])


def test_the_commit_of_the_rows_is_kept_with_the_run(
    hub: Path, tiny: Path, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydratune.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRATUNE_CACHE", environment["HYDRATUNE_CACHE"])
    typed = ["model=local", f"model.name_or_path={tiny}", "quantization=none", "data=jsonl", "data.path=some/chats"]
    monkeypatch.setattr("sys.argv", ["hydratune", *typed, "run_dir=run", "stages=[prepare]"])
    main()
    report = json.loads((tmp_path / "run" / "prepared.json").read_text())
    assert report["sources"] == [{"source": "some/chats", "revision": COMMIT, "rows": 30}]


def test_a_source_can_be_read_again(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": FILES["a.jsonl"]})
    source = Source("a", (tmp_path / "a.jsonl",))
    assert list(source) == list(source)


def test_a_tables_objects_have_the_keys_that_were_written(tmp_path: Path) -> None:
    """Arrow gives each of a column's objects the keys of all of them, null where they were not written."""
    rows = []
    for name, arguments in (("weather", {"city": "Rome"}), ("clock", {"zone": "CET"})):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        turns = [
            {"role": "user", "content": "Well?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "12"}, {"role": "assistant", "content": "12."},
        ]  # fmt: skip
        rows.append({"messages": turns})
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "saved"):
        (part,) = training_parts(DataConf(path=str(tmp_path / name)))
        found = [item.example.messages[1]["tool_calls"][0]["function"]["arguments"] for item in part.items()]
        assert found == [{"city": "Rome"}, {"zone": "CET"}]


def test_missing_shards_are_refused(tmp_path: Path) -> None:
    for number in (0, 2):
        (tmp_path / f"train-{number:05}-of-00003.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError) as caught:
        open_source(DataConf(path=str(tmp_path)))
    assert caught.value.sentences == [f"{tmp_path} holds 2 of the 3 files train-00000-of-00003.jsonl belongs to."]
    (tmp_path / "train-00001-of-00003.jsonl").write_text("{}\n")
    assert open_source(DataConf(path=str(tmp_path))).count == 3
