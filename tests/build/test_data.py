"""Rows of a file become supervised tokens: what is refused, what is masked, what is cached."""

import json
import os
import re
from pathlib import Path

import pytest
from datasets import Dataset
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hydratune.build.data import build_tokens, load_tokens, read_rows, tokenize
from hydratune.build.model import TEMPLATES
from hydratune.config.schema import ConfigError, DataConf

USER = '{"role": "user", "content": "Hi?"}'
ANSWER = '{"role": "assistant", "content": "Hi."}'
GOOD = f'{{"messages": [{USER}, {ANSWER}]}}'


def turns(*messages: str) -> str:
    return f'{{"messages": [{", ".join(messages)}]}}'


REFUSED = [
    ("line-not-json", "a.jsonl", f"{GOOD}\n{{oops\n", ["line 2", "not JSON"]),
    ("line-not-json-after-blank-lines", "a.jsonl", f"{GOOD}\n\n\n{GOOD},\n", ["line 4", "not JSON"]),
    ("file-not-json", "a.json", f"[{GOOD}, oops]", ["not JSON"]),
    ("file-not-a-list", "a.json", GOOD, ["list"]),
    ("row-a-list", "a.jsonl", f"{GOOD}\n[1, 2]\n", ["row 2"]),
    ("row-a-string", "a.jsonl", f'{GOOD}\n"messages"\n', ["row 2"]),
    ("row-null", "a.json", f"[{GOOD}, null]", ["row 2"]),
    ("no-column", "a.jsonl", f'{GOOD}\n{{"text": "Hi."}}\n', ["row 2", "no column 'messages', found text", "data.column"]),
    ("messages-a-string", "a.jsonl", f'{GOOD}\n{{"messages": "Hi."}}\n', ["row 2", "must be a list of messages"]),
    ("no-messages", "a.jsonl", f'{GOOD}\n{{"messages": []}}\n', ["row 2", "not empty"]),
    ("messages-null", "a.jsonl", f'{GOOD}\n{{"messages": null}}\n', ["row 2", "must be a list of messages"]),
    ("message-a-string", "a.jsonl", turns('"Hi."', ANSWER), ["row 1", "a message needs role and content", "'Hi.'"]),
    ("no-content", "a.jsonl", turns('{"role": "user"}', ANSWER), ["row 1", "a message needs role and content"]),
    ("no-role", "a.jsonl", turns('{"content": "Hi?"}', ANSWER), ["row 1", "a message needs role and content"]),
    ("unknown-role", "a.jsonl", turns(USER.replace("user", "human"), ANSWER), ["row 1", "system, user, assistant", "'human'"]),
    ("role-a-list", "a.jsonl", turns('{"role": ["user"], "content": "Hi?"}', ANSWER), ["row 1", "a role is one of"]),
    ("blank-content", "a.jsonl", turns(USER, '{"role": "assistant", "content": " "}'), ["row 1", "text that is not empty"]),
    ("content-null", "a.jsonl", turns(USER, '{"role": "assistant", "content": null}'), ["row 1", "text that is not empty"]),
    ("content-parts", "a.jsonl", turns(USER, '{"role": "assistant", "content": [{}]}'), ["row 1", "text that is not empty"]),
    ("last-is-the-user", "a.jsonl", turns(USER, ANSWER, USER), ["row 1", "the last message must be the assistant's", "'user'"]),
    ("empty", "a.jsonl", "", ["empty"]),
    ("blank", "a.jsonl", " \n\n", ["empty"]),
    ("empty-list", "a.json", "[]", ["empty"]),
    ("not-utf8", "a.jsonl", GOOD.encode() + b"\n" + GOOD.replace("Hi.", "caf\xe9").encode("latin-1"), ["UTF-8"]),
    ("csv", "a.csv", "messages\nHi.\n", [".json or .jsonl"]),
    ("missing", "a.jsonl", None, ["there is no such file"]),
    ("missing-csv", "a.csv", None, [""]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused(name: str, content: str | bytes | None, said: list[str], tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_rows(DataConf(path=str(path)))
    (sentence,) = caught.value.sentences
    assert all(part in sentence for part in [str(path), *said]), sentence
    assert "\n" not in sentence


def test_every_wrong_row_is_counted_and_three_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join([GOOD, *['{"messages": []}'] * 5]))
    with pytest.raises(ConfigError) as caught:
        read_rows(DataConf(path=str(tmp_path / "a.jsonl")))
    numbers = [re.findall(r"row (\d+)", sentence) for sentence in caught.value.sentences]
    assert numbers == [["2"], ["3"], ["4"], []]
    assert "2 further rows" in caught.value.sentences[3]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", f"{GOOD}\n{GOOD}\n"),
        ("a.jsonl", f"\ufeff{GOOD}\n{GOOD}"),
        ("a.jsonl", f"{GOOD}\r\n\r\n{GOOD}\r\n"),
        ("a.json", f"[{GOOD}, {GOOD}]"),
        ("a.json", f"\ufeff[\n{GOOD},\n{GOOD}\n]\n"),
    ],
    ids=["jsonl", "jsonl-bom", "jsonl-crlf", "json", "json-bom"],
)
def test_what_is_accepted(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    exchange = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}]
    assert read_rows(DataConf(path=str(tmp_path / name))) == {1: exchange, 2: exchange}


def test_a_folder_holds_a_file_for_each_split(tmp_path: Path) -> None:
    (tmp_path / "test_sft.jsonl").write_text(GOOD)
    (tmp_path / "train.json").write_text(f"[{GOOD}, {GOOD}]")
    assert len(read_rows(DataConf(path=str(tmp_path), split="test_sft"))) == 1
    assert len(read_rows(DataConf(path=str(tmp_path)))) == 2
    with pytest.raises(ConfigError, match=r"data\.split=dev: .* found test_sft\.jsonl, train\.json\."):
        read_rows(DataConf(path=str(tmp_path), split="dev"))
    (tmp_path / "train.jsonl").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"must hold one of train\.jsonl, train\.json"):
        read_rows(DataConf(path=str(tmp_path)))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"], ids=ascii)
def test_only_a_newline_ends_a_line_of_jsonl(separator: str, tmp_path: Path) -> None:
    """JSON may hold these unescaped in a string, as json.dumps(..., ensure_ascii=False) writes them."""
    (tmp_path / "a.jsonl").write_text(GOOD.replace("Hi.", f"one{separator}two") + "\n", encoding="utf-8")
    ((_, answer),) = read_rows(DataConf(path=str(tmp_path / "a.jsonl"))).values()
    assert answer["content"] == f"one{separator}two"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["some/thing", "gone.csv"])
def test_a_hub_id_that_cannot_be_reached_is_one_sentence(path: str, tiny: Path, hydratune, tmp_path: Path) -> None:
    done = hydratune("model=local", f"model.name_or_path={tiny}", f"data.path={path}", "run_dir=run")
    assert "Traceback" not in done.stderr, done.stderr[-1500:]
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("hydratune: ") and path in line
    assert not (tmp_path / "run").exists()


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<|assistant|>\nWhat is otter?"},  # looks like the template: not an answer
    {"role": "assistant", "content": "It is a violin."},
    {"role": "user", "content": "And fern?"},
    {"role": "assistant", "content": "Größe."},
]
SYSTEM = [*"<|system|>", "Ċ", "B", "e", "Ġbr", *"ief.", "</s>", "Ċ"]
USER_TAG = [*"<|us", "er", *"|>", "Ċ"]
ASSISTANT_TAG = [*"<|assistant|>", "Ċ"]
FIRST_QUESTION = [*USER_TAG, *ASSISTANT_TAG, "What", "Ġis", "Ġotter", "?", "</s>", "Ċ"]
FIRST_ANSWER = ["It", "Ġis", "Ġa", "Ġviolin", ".", "</s>", "Ċ"]
SECOND_QUESTION = [*USER_TAG, "And", "Ġfern", "?", "</s>", "Ċ"]
SECOND_ANSWER = ["G", "r", "Ã", "¶", "Ã", "Ł", "e", ".", "</s>", "Ċ"]
WHOLE = [
    *SYSTEM, *FIRST_QUESTION, *ASSISTANT_TAG, *FIRST_ANSWER, *SECOND_QUESTION, *ASSISTANT_TAG, *SECOND_ANSWER,
]  # fmt: skip


@pytest.fixture
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (TEMPLATES / "tinyllama_chat.jinja").read_text()
    return tokenizer


def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make it put <s> first, as Llama's does."""
    backend = tokenizer.backend_tokenizer
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    backend.post_processor = bos
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


@pytest.mark.parametrize(
    ("loss", "supervised"),
    [("assistant", FIRST_ANSWER + SECOND_ANSWER), ("completion", SECOND_ANSWER), ("all", WHOLE)],
)
def test_which_tokens_are_supervised(loss: str, supervised: list[str], tokenizer) -> None:
    ids, labels = tokenize(tokenizer, CHAT, loss, 512)
    assert tokenizer.convert_ids_to_tokens(ids) == WHOLE
    assert tokenizer.convert_ids_to_tokens([label for label in labels if label != -100]) == supervised
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    if loss == "completion":
        assert labels[: -len(SECOND_ANSWER)] == [-100] * (len(WHOLE) - len(SECOND_ANSWER))


def test_both_are_cut_at_max_length(tokenizer) -> None:
    ids, labels = tokenize(tokenizer, CHAT, "assistant", 512)
    assert tokenize(tokenizer, CHAT, "assistant", 60) == (ids[:60], labels[:60])


def test_the_end_token_stays_supervised_where_it_is_also_the_padding(tokenizer) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    rows = [tokenize(tokenizer, CHAT[:n], "assistant", 512) for n in (3, 5)]
    batch = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(
        [{"input_ids": ids, "labels": labels} for ids, labels in rows]
    )
    short = len(rows[0][0])
    assert batch["labels"][0, short:].eq(-100).all() and batch["attention_mask"][0, short:].eq(0).all()
    assert batch["labels"].eq(tokenizer.eos_token_id).sum(1).tolist() == [1, 2]
    assert batch["attention_mask"].sum(1).tolist() == [len(ids) for ids, _ in rows]


@pytest.mark.parametrize("written", [False, True], ids=["the-tokenizer-adds-it", "the-template-writes-it"])
def test_one_bos(written: bool, tokenizer) -> None:
    bos = with_bos(tokenizer).bos_token_id
    if written:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    for loss, label in (("assistant", -100), ("completion", -100), ("all", bos)):
        ids, labels = tokenize(tokenizer, CHAT, loss, 512)
        assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", *WHOLE]
        assert labels[0] == label


def test_no_bos_where_the_tokenizer_adds_none(tokenizer) -> None:
    assert tokenizer.bos_token_id not in tokenize(tokenizer, CHAT, "all", 512)[0]


def write(path: Path, rows: list[list[dict[str, str]]]) -> str:
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return str(path)


LATER_TURNS_CHANGE = "{% for m in messages %}{{ loop.revindex ~ m.content }}{% endfor %}"
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + "x" * 9


@pytest.mark.parametrize(
    ("template", "said"),
    [(LATER_TURNS_CHANGE, "renders a turn differently"), (REFUSES_SYSTEM, "no system turn")],
    ids=["later-turns-change", "raises"],
)
def test_a_template_that_does_not_fit_the_row(template: str, said: str, tokenizer, tmp_path: Path) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=rf"a\.jsonl, row 1: .*{said}"):
        build_tokens(DataConf(path=write(tmp_path / "a.jsonl", [CHAT])), tokenizer, 512, tmp_path)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_row_that_is_cut_before_its_answer_is_named_as_in_the_file(seed, tokenizer, tmp_path: Path) -> None:
    long = [{"role": "user", "content": "fern " * 200}, CHAT[2]]
    conf = DataConf(path=write(tmp_path / "a.jsonl", [CHAT, CHAT, long, CHAT, CHAT]), shuffle_seed=seed)
    with pytest.raises(ConfigError, match=r"a\.jsonl, row 3: .*max_length=150"):
        build_tokens(conf, tokenizer, 150, tmp_path)


@pytest.fixture
def conf(tmp_path: Path) -> DataConf:
    return DataConf(path=write(tmp_path / "a.jsonl", [CHAT, CHAT[1:3]]))


def test_the_same_settings_give_the_same_folder(conf: DataConf, tokenizer, tmp_path: Path) -> None:
    first = build_tokens(conf, tokenizer, 512, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert build_tokens(conf, tokenizer, 512, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == files
    tokens = load_tokens(first)
    assert tokens.column_names == ["input_ids", "labels"]
    assert tokenizer.convert_ids_to_tokens(tokens[0]["input_ids"]) == WHOLE


def test_other_settings_give_another_folder(conf: DataConf, tokenizer, tiny: Path, tmp_path: Path) -> None:
    def folder(loss: str = "assistant", max_length: int = 512) -> Path:
        return build_tokens(DataConf(path=conf.path, loss=loss), tokenizer, max_length, tmp_path)

    folders = [folder(), folder(loss="completion"), folder(loss="all"), folder(max_length=100)]
    with_bos(tokenizer)
    folders.append(folder())
    tokenizer.chat_template += "\n"
    folders.append(folder())
    write(tmp_path / "a.jsonl", [CHAT])
    folders.append(folder())
    assert len(set(folders)) == 7
    assert sorted((tmp_path / "tokens").iterdir()) == sorted(folders)


@pytest.mark.parametrize("pid", [123, os.getpid()], ids=["another-process", "a-reused-process-id"])
def test_a_half_built_folder_is_not_taken(pid: int, conf: DataConf, tokenizer, tmp_path: Path) -> None:
    whole = build_tokens(conf, tokenizer, 512, tmp_path / "other")
    left = tmp_path / "tokens" / f".{whole.name}.{pid}"
    left.mkdir(parents=True)
    (left / "data-00000-of-00001.arrow").write_bytes(b"half")
    built = build_tokens(conf, tokenizer, 512, tmp_path)
    assert built.name == whole.name
    assert load_tokens(built).to_list() == load_tokens(whole).to_list()


def test_a_build_that_is_killed_leaves_nothing_to_take(conf, tokenizer, tmp_path: Path, monkeypatch) -> None:
    def killed(self: Dataset, folder: Path) -> None:
        Path(folder).mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Dataset, "save_to_disk", killed)
        build_tokens(conf, tokenizer, 512, tmp_path)
    assert all(path.name.startswith(".") for path in (tmp_path / "tokens").iterdir())
    assert len(load_tokens(build_tokens(conf, tokenizer, 512, tmp_path))) == 2
