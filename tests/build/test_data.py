"""Which rows are taken, in which order, from one source or several, and which of them are held out."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from hydratune.build.data import Item, Part, check_rows, formatter_digest, training_parts, validation_parts
from hydratune.build.store import Prepared
from hydratune.build.tokens import build_tokens
from hydratune.config.schema import ConfigError, DataConf
from hydratune.formats import Chat, Text


def chat(number: int, word: str = "fern") -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"What is {word} {number}?"},
            {"role": "assistant", "content": f"It is {number}."},
        ]
    }


def asked(part: Part) -> list[str]:
    """The question of each row that is taken."""
    return [question(item) for item in part.items()]


def question(item: Item) -> str:
    if isinstance(item.example, Chat):
        return str(item.example.messages[-2]["content"])
    assert isinstance(item.example, Text), item.example
    return item.example.prompt or item.example.completion


def write(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def forty(tmp_path: Path) -> str:
    return write(tmp_path / "forty.jsonl", [chat(n) for n in range(40)])


def numbers(conf: DataConf, tiny: Path, cache: Path) -> list[int]:
    """The rows as training takes them, by their number in the file."""
    return list(Prepared(build_tokens(conf, AutoTokenizer.from_pretrained(tiny), 512, cache)).rows["number"])


@pytest.mark.parametrize(("seed", "most"), [(0, None), (42, None), (42, 9), (None, 9), (None, None), (7, 400)])
def test_the_order_is_that_of_datasets_own_shuffle(seed, most, forty: str, tiny: Path, tmp_path: Path) -> None:
    theirs = Dataset.from_dict({"number": range(1, 41)})
    theirs = theirs if seed is None else theirs.shuffle(seed=seed)
    conf = DataConf(path=forty, shuffle_seed=seed, max_rows=most)
    assert numbers(conf, tiny, tmp_path) == list(theirs["number"])[:most]


def test_shuffled_and_bad_rows(forty: str, tiny: Path, tmp_path: Path) -> None:
    """A row that is left out leaves the others' order alone."""
    whole = numbers(DataConf(path=forty, shuffle_seed=3, max_rows=20), tiny, tmp_path)
    rows = Path(forty).read_text().splitlines()
    rows[whole[4] - 1] = "{}"
    other = write(tmp_path / "other.jsonl", rows)
    conf = DataConf(path=other, shuffle_seed=3, max_rows=20, on_bad_row="skip", max_bad_share=0.05)
    assert numbers(conf, tiny, tmp_path) == whole[:4] + whole[5:]


def test_several_sources_follow_one_another_each_in_its_order(forty: str, tiny: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", [chat(n, "otter") for n in range(30)])
    conf = DataConf(
        mix=[{"path": forty, "shuffle_seed": 1}, {"path": other, "max_rows": 3}, {"path": forty, "max_rows": 2}]
    )
    shuffled = list(np.random.default_rng(1).permutation(40) + 1)
    assert numbers(conf, tiny, tmp_path) == [*shuffled, 1, 2, 3, 1, 2]


def test_a_source_of_several_says_what_differs(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "test.jsonl", [{"turns": chat(n, "river")["messages"]} for n in range(5)])
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["q", "a"], *([f"What is otter {n}?", "x"] for n in range(5))])
    write(tmp_path / "text.jsonl", [{"text": f"Bread {n}.", **chat(n)} for n in range(5)])
    DatasetDict(dev=Dataset.from_list([chat(n, "violin") for n in range(5)])).save_to_disk(tmp_path / "saved")
    conf = DataConf(
        split="test",
        columns={"messages": "turns"},
        max_rows=2,
        mix=[
            {"path": str(tmp_path / "folder")},
            {"path": str(tmp_path / "folder"), "max_rows": 1, "shuffle_seed": 0},
            {"path": str(tmp_path / "a.csv"), "split": "train", "columns": {"instruction": "q", "output": "a"}},
            {"path": str(tmp_path / "text.jsonl"), "split": "train", "format": "text", "columns": {}},
            {"path": str(tmp_path / "saved"), "split": "dev", "columns": {}, "max_rows": None},
        ],
    )
    assert [asked(part) for part in training_parts(conf)] == [
        ["What is river 0?", "What is river 1?"],
        [f"What is river {np.random.default_rng(0).permutation(5)[0]}?"],
        ["What is otter 0?", "What is otter 1?"],
        ["Bread 0.", "Bread 1."],
        [f"What is violin {n}?" for n in range(5)],
    ]


def test_values_of_a_mix_are_taken_as_those_of_the_group_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose name is a number, and a number that was quoted."""
    write(tmp_path / "2024" / "train.jsonl", [chat(n) for n in range(5)])
    monkeypatch.chdir(tmp_path)
    (part,) = training_parts(DataConf(mix=[{"path": 2024, "max_rows": "3"}]))
    assert asked(part) == ["What is fern 0?", "What is fern 1?", "What is fern 2?"]


@pytest.mark.parametrize(
    ("rows", "weights", "most", "taken"),
    [
        ([30, 10], [1, 1], None, [10, 10]),
        ([30, 10], [3, 1], None, [30, 10]),
        ([30, 10], [1, 3], None, [3, 10]),
        ([20, 20], [0.3, 0.7], None, [8, 20]),
        ([20, 12], [0.3, 0.7], None, [5, 12]),
        ([10, 10, 10], [1, 2, 7], None, [1, 2, 10]),
        ([30, 30], [0.1, 0.1], None, [30, 30]),
        ([30, 30], [1, 1], 6, [6, 6]),
        ([30, 4], [1, 1], 6, [4, 4]),
        ([3, 7], [1, 1], None, [3, 3]),
        ([30, 10], [None, None], None, [30, 10]),
    ],
)
@pytest.mark.parametrize("seed", [None, 5])
def test_weights_are_shares_of_rows_none_taken_twice(rows, weights, most, taken, seed, tmp_path: Path) -> None:
    mix = [
        {
            "path": write(tmp_path / f"{n}.jsonl", [chat(k) for k in range(count)]),
            **({"weight": weight} if weight else {}),
        }
        for n, (count, weight) in enumerate(zip(rows, weights, strict=True))
    ]
    parts = training_parts(DataConf(mix=mix, max_rows=most, shuffle_seed=seed))
    for part, count, kept in zip(parts, rows, taken, strict=True):
        order = range(count) if seed is None else np.random.default_rng(seed).permutation(count)
        assert asked(part) == [f"What is fern {n}?" for n in sorted(order[:kept])]


def test_the_format_is_told_by_the_first_row_that_can_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["{oops", [1], {"x": 1}, chat(1), {"text": "Hi."}, chat(2)])
    (part,) = training_parts(DataConf(path=path))
    items = list(part.items())
    assert [item.number for item in items if isinstance(item.example, Chat)] == [4, 6]
    assert "no column 'messages', found text" in str(items[4].example)


def test_every_wrong_row_is_counted_and_three_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(0), *[{"messages": []}] * 5])
    with pytest.raises(ConfigError) as caught:
        check_rows(DataConf(path=path))
    said = "messages must be a list of messages that is not empty, found []."
    assert caught.value.sentences == [
        *[f"{path}, row {n}: {said}" for n in (2, 3, 4)],
        "… and 2 further rows like these.",
    ]
    check_rows(DataConf(path=path, on_bad_row="skip"))


def test_only_rows_that_are_taken_are_judged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(0), chat(1), {"messages": []}])
    check_rows(DataConf(path=path, max_rows=2))
    with pytest.raises(ConfigError, match="row 3"):
        check_rows(DataConf(path=path, max_rows=3))


def held_out(rows: list[Any], share: float, path: Path) -> set[str]:
    (part,) = training_parts(DataConf(path=write(path, rows), validation_share=share))
    return {question(item) for item in part.items(share) if item.held_out}


def test_a_share_is_held_out_by_what_a_row_says(tmp_path: Path) -> None:
    rows = [chat(n) for n in range(400)]
    quarter = held_out(rows, 0.25, tmp_path / "a.jsonl")
    assert 70 <= len(quarter) <= 130
    assert held_out(rows, 0.25, tmp_path / "a.jsonl") == quarter
    # whatever the order, the file, the format and the other rows
    assert held_out(rows[::-1], 0.25, tmp_path / "b" / "other.jsonl") == quarter
    alpaca = [{"instruction": row["messages"][0]["content"], "output": row["messages"][1]["content"]} for row in rows]
    assert held_out(alpaca, 0.25, tmp_path / "alpaca.jsonl") == quarter
    assert held_out(rows[:100], 0.25, tmp_path / "few.jsonl") == quarter & {
        f"What is fern {number}?" for number in range(100)
    }
    # a larger share holds out the same rows and others
    assert held_out(rows, 0.5, tmp_path / "a.jsonl") > quarter


def test_equal_rows_are_held_out_together(tmp_path: Path) -> None:
    rows = [chat(n) for n in range(50)]
    (part,) = training_parts(DataConf(path=write(tmp_path / "a.jsonl", rows * 3)))
    sides = [item.held_out for item in part.items(0.3)]
    assert sides[:50] == sides[50:100] == sides[100:] and 0 < sum(sides[:50]) < 50


def test_without_a_share_nothing_is_held_out(forty: str) -> None:
    conf = DataConf(path=forty)
    assert not any(item.held_out for part in training_parts(conf) for item in part.items())
    assert validation_parts(conf) == []


def test_validation_rows_of_their_own(forty: str, tmp_path: Path) -> None:
    """Another file, read whole and as it stands; the hub's names of the training rows are not its own."""
    other = write(tmp_path / "dev.jsonl", [{"turns": chat(n, "otter")["messages"]} for n in range(5)])
    conf = DataConf(
        path="some/thing", name="en", revision="main", max_rows=2, shuffle_seed=1, columns={"messages": "turns"},
        validation_path=other,
    )  # fmt: skip
    (part,) = validation_parts(conf)
    assert asked(part) == [f"What is otter {n}?" for n in range(5)]


def test_validation_rows_of_another_split(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    write(folder / "train.jsonl", [chat(n) for n in range(3)])
    write(folder / "dev.jsonl", [chat(n, "otter") for n in range(2)])
    conf = DataConf(path=str(folder), validation_split="dev")
    assert [asked(part) for part in validation_parts(conf)] == [["What is otter 0?", "What is otter 1?"]]
    assert [len(asked(part)) for part in training_parts(conf)] == [3]


def test_where_rows_lie_does_not_decide_what_they_are(tmp_path: Path) -> None:
    """So that a run whose cache is lost finds its rows again in another place."""
    identities = []
    for place in ("here", "there"):
        path = write(tmp_path / place / "a.jsonl", [chat(n) for n in range(5)])
        dev = write(tmp_path / place / "dev.jsonl", [chat(9)])
        conf = DataConf(path=path, validation_path=dev)
        identities.append([part.identity() for part in [*training_parts(conf), *validation_parts(conf)]])
    assert identities[0] == identities[1]
    assert training_parts(DataConf(path=path, max_rows=3))[0].identity() != identities[0][0]
    assert training_parts(DataConf(path=path, format="messages"))[0].identity() != identities[0][0]


FORMATTERS = """\
def conversation(row):
    return [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]


def pair(row):
    if row["q"] == "2":
        raise LookupError("no\\nsuch row")
    return {"prompt": row["q"], "completion": row["a"]}
"""


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "formatters_of_test_data.py").write_text(FORMATTERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "formatters_of_test_data", raising=False)
    return write(tmp_path / "questions.jsonl", [{"q": str(n), "a": "x"} for n in range(4)])


def test_rows_through_a_function_of_the_users_own(questions: str) -> None:
    (part,) = training_parts(DataConf(path=questions, formatter="formatters_of_test_data:pair"))
    first, second, third, fourth = [item.example for item in part.items()]
    assert (first, second, fourth) == (Text("0", "x"), Text("1", "x"), Text("3", "x"))
    assert str(third) == "data.formatter=formatters_of_test_data:pair failed: LookupError: no such row"


@pytest.mark.parametrize("columns", [{}, {"messages": "chat"}], ids=["as-they-stand", "mapped"])
def test_a_function_may_give_messages_alone(columns: dict[str, str], questions: str) -> None:
    mix = [{"path": questions, "columns": columns}]
    (part,) = training_parts(DataConf(mix=mix, formatter="formatters_of_test_data:conversation"))
    assert asked(part) == ["0", "1", "2", "3"]


def test_the_text_of_the_functions_module_counts(questions: str, tmp_path: Path) -> None:
    conf = DataConf(path=questions, formatter="formatters_of_test_data:pair")
    before = formatter_digest(conf)
    assert before == formatter_digest(conf) and formatter_digest(DataConf(path=questions)) is None
    (tmp_path / "formatters_of_test_data.py").write_text(FORMATTERS + "\n")
    assert formatter_digest(conf) != before
