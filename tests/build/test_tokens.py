"""The token cache: what decides it, built once, whole or absent, and taken only as it was written."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from warm import until

from hydratune.build import cache as cache_module
from hydratune.build.cache import build_once
from hydratune.build.store import Prepared, damage
from hydratune.build.tokens import build_tokens, open_tokens
from hydratune.config.schema import DataConf, RunError

CHAT = [
    {"role": "user", "content": "What is otter?"},
    {"role": "assistant", "content": "It is a violin."},
    {"role": "user", "content": "And fern?"},
    {"role": "assistant", "content": "A teacher of the river."},
]


@pytest.fixture
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny)


def write(path: Path, rows: list[list[dict[str, str]]]) -> str:
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def conf(tmp_path: Path) -> DataConf:
    return DataConf(path=write(tmp_path / "a.jsonl", [CHAT, CHAT[:2]]))


def same_rows(one: Path, other: Path) -> bool:
    return Prepared(one).rows.to_list() == Prepared(other).rows.to_list()


def test_the_same_settings_give_the_same_folder(conf: DataConf, tokenizer, tmp_path: Path) -> None:
    first = build_tokens(conf, tokenizer, 512, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert build_tokens(conf, tokenizer, 512, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == files
    rows = Prepared(first).rows
    assert rows.column_names == ["input_ids", "labels", "file", "number"]
    assert rows["number"][:] == [1, 2]
    assert tokenizer.decode(rows[1]["input_ids"]) == tokenizer.apply_chat_template(CHAT[:2], tokenize=False)


def test_equal_rows_in_another_file_are_named_by_that_file(conf: DataConf, tokenizer, tmp_path: Path) -> None:
    """Else a warning would send its reader to a file that somebody else has."""
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    moved = replace(conf, path=str(tmp_path / "b.jsonl"))
    for one in (conf, moved):
        report = Prepared(build_tokens(one, tokenizer, 512, tmp_path)).report["training"]
        assert report["sources"] == [one.path]
        assert all(place.startswith(f"{one.path}, row ") for places in report["first"].values() for place in places)


def test_whatever_decides_the_tokens_gives_another_folder(conf: DataConf, tokenizer, tmp_path: Path) -> None:
    rows = [CHAT, CHAT[:2], [*CHAT[:1], {"role": "assistant", "content": "Bread."}]]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "v.jsonl", [CHAT[2:]])
    settings: list[dict[str, Any]] = [
        {}, {"loss": "last"}, {"loss": "all"}, {"packing": True}, {"on_long_row": "skip"}, {"max_rows": 1},
        {"shuffle_seed": 1}, {"shuffle_seed": 2}, {"on_bad_row": "skip"}, {"format": "messages"},
        {"validation_path": str(tmp_path / "v.jsonl")}, {"validation_share": 0.5},
    ]  # fmt: skip
    folders = [build_tokens(replace(conf, **setting), tokenizer, 512, tmp_path) for setting in settings]
    folders.append(build_tokens(conf, tokenizer, 100, tmp_path))
    tokenizer.chat_template += "\n"
    folders.append(build_tokens(conf, tokenizer, 512, tmp_path))
    tokenizer.add_tokens(["river"])
    folders.append(build_tokens(conf, tokenizer, 512, tmp_path))
    write(tmp_path / "a.jsonl", rows[:2])
    folders.append(build_tokens(conf, tokenizer, 512, tmp_path))
    assert len(set(folders)) == len(settings) + 4
    assert sorted((tmp_path / "tokens").iterdir()) == sorted(folders)


@pytest.mark.parametrize("name", ["formats.py", "build/rendering.py", "build/rows.py"])
def test_other_code_takes_nothing_that_this_one_has_made(name: str, conf, tokenizer, tmp_path, monkeypatch) -> None:
    before = build_tokens(conf, tokenizer, 512, tmp_path)
    read = Path.read_bytes

    def changed(path: Path) -> bytes:
        return read(path) + (b"#" if path.resolve().match(f"hydratune/{name}") else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    assert build_tokens(conf, tokenizer, 512, tmp_path) != before


def test_a_formatter_that_changed_is_seen(conf, tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "def rows(row):\n    return row['messages'][:2]\n"
    (tmp_path / "my_rows.py").write_text(code)
    conf = replace(conf, formatter="my_rows:rows")
    before = build_tokens(conf, tokenizer, 512, tmp_path)
    assert build_tokens(conf, tokenizer, 512, tmp_path) == before
    (tmp_path / "my_rows.py").write_text(code.replace("[:2]", "[2:]"))
    assert build_tokens(conf, tokenizer, 512, tmp_path) != before


@pytest.mark.parametrize("file", ["training.arrow", "report.json", "report.digest", "packs.npz"])
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_damaged_folder_is_built_again(file: str, how: str, conf, tokenizer, tmp_path: Path) -> None:
    conf = replace(conf, packing=True)
    whole = build_tokens(conf, tokenizer, 512, tmp_path / "other")
    built = build_tokens(conf, tokenizer, 512, tmp_path)
    path = built / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if how == "changed" else content[: len(content) // 2])
    assert damage(built)
    (tmp_path / "prepared.json").write_text(json.dumps({"tokens": built.name}))
    opened = open_tokens(tmp_path / "prepared.json", conf, tokenizer, 512, tmp_path)
    assert damage(built) is None and opened.rows.to_list() == Prepared(whole).rows.to_list()


def test_what_was_prepared_stays_when_the_source_changes(conf, tokenizer, tmp_path: Path) -> None:
    built = build_tokens(conf, tokenizer, 512, tmp_path)
    (tmp_path / "prepared.json").write_text(json.dumps({"tokens": built.name}))
    before = Prepared(built).rows.to_list()
    write(tmp_path / "a.jsonl", [CHAT[:2]])
    assert open_tokens(tmp_path / "prepared.json", conf, tokenizer, 512, tmp_path).rows.to_list() == before
    (built / "training.arrow").write_bytes(b"")
    with pytest.raises(RunError, match=r"a\.jsonl is not what it was when this run prepared its tokens"):
        open_tokens(tmp_path / "prepared.json", conf, tokenizer, 512, tmp_path)


@pytest.mark.parametrize("pid", [99_999_999, os.getpid()], ids=["a-dead-process", "a-reused-process-id"])
def test_a_half_built_folder_is_not_taken_and_goes(pid: int, conf, tokenizer, tmp_path: Path) -> None:
    whole = build_tokens(conf, tokenizer, 512, tmp_path / "other")
    left = tmp_path / "tokens" / f".{whole.name}.{os.uname().nodename}.{pid}"
    left.mkdir(parents=True)
    (left / "training.arrow").write_bytes(b"half")
    (tmp_path / "tokens" / f".{whole.name}.lock").write_text(f"{os.uname().nodename} {pid}")
    began = time.monotonic()
    built = build_tokens(conf, tokenizer, 512, tmp_path)
    assert time.monotonic() - began < cache_module.SILENT / 2
    assert same_rows(built, whole)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [whole.name]


def test_the_lock_of_a_machine_that_died_is_taken_when_it_is_silent(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "SILENT", 0.3)
    (tmp_path / ".x.lock").write_text("another-machine 1")
    told: list[str] = []
    build_once(tmp_path / "x", Path.mkdir, told.append)
    assert told == ["another-machine 1"] and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_builder_that_lives_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "SILENT", 30.0)  # which it would take without its signs of life
    code = (
        "import sys; from pathlib import Path; from hydratune.build import cache; cache.BEAT = 0.1\n"
        "def build(folder):\n    folder.mkdir(); print('building', flush=True); sys.stdin.readline()\n"
        f"cache.build_once(Path({str(tmp_path / 'x')!r}), build)\n"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout and other.stdout.readline() == "building\n"
        told: list[str] = []

        def never(folder: Path) -> None:
            raise AssertionError("built twice")

        def waiting(holder: str) -> None:
            told.append(holder)
            print(file=other.stdin, flush=True)

        assert build_once(tmp_path / "x", never, waiting).is_dir()
    assert told == [f"{os.uname().nodename} {other.pid}"]


BUILD = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from hydratune.build.tokens import build_tokens
from hydratune.config.schema import DataConf
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print("ready", flush=True)
build_tokens(DataConf(path=sys.argv[2]), tokenizer, 512, Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_nothing_to_take(tiny: Path, tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [CHAT] * 20_000)
    whole = build_tokens(DataConf(path=path), tokenizer, 512, tmp_path / "other")
    cut_off = 0
    for after in (0.0, 0.5, 1.0, 1.5):
        command = [sys.executable, "-c", BUILD, str(tiny), path, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout and process.stdout.readline() == "ready\n"
            if not after:  # so that one meets a build at work however busy the machine is
                until(lambda: any(one.is_dir() for one in (tmp_path / "tokens").glob(".*")))
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
        left = list((tmp_path / "tokens").iterdir()) if (tmp_path / "tokens").is_dir() else []
        assert all(one.name.startswith(".") or damage(one) is None for one in left)
        cut_off += any(one.is_dir() and one.name.startswith(".") for one in left)
    assert cut_off, "no kill met a build"
    built = build_tokens(DataConf(path=path), tokenizer, 512, tmp_path)
    assert same_rows(built, whole) and [one.name for one in (tmp_path / "tokens").iterdir()] == [whole.name]


@pytest.mark.slow
def test_two_at_once_build_once(tiny: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [CHAT] * 5000)
    command = [sys.executable, "-c", BUILD, str(tiny), path, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in both] and [process.returncode for process in both] == [0, 0]
    (built,) = (tmp_path / "tokens").iterdir()
    assert damage(built) is None and len(Prepared(built).rows) == 5000
