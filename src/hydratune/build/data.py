"""conf/data -> token ids and labels, cached by everything that decides them."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from hydratune.config.schema import ConfigError, DataConf
from hydratune.formats import messages

DEMO = Path(__file__).resolve().parents[1] / "demo"
CODE_VERSION = 1  # raise it when tokens or labels change


def data_path(conf: DataConf) -> str:
    """The file, or the hub id, that `data.path` names."""
    assert conf.path
    return str(DEMO / "train.jsonl") if conf.path == "demo" else conf.path


def read_rows(conf: DataConf) -> list[list[dict[str, str]]]:
    """All rows as messages, shuffled and limited as asked. Raises ConfigError naming file and row."""
    path = data_path(conf)
    if path.endswith((".json", ".jsonl")):
        rows = _read_json(Path(path))
    elif Path(path).exists() or path.startswith(("/", ".")):
        raise ConfigError(f"data.path={path} must be a .json or .jsonl file, or a hub id.")
    else:
        rows = load_dataset(path, split=conf.split).to_list()
    numbers = list(range(len(rows)))
    if conf.shuffle_seed is not None:
        numbers = Dataset.from_dict({"i": numbers}).shuffle(seed=conf.shuffle_seed)["i"]
    wrong, good = [], []
    for number in list(numbers)[: conf.max_rows]:
        try:
            good.append(messages(rows[number], conf.column))
        except ValueError as error:
            wrong.append(f"{path}, row {number + 1}: {error}.")
    if wrong:
        more = [f"… and {len(wrong) - 3} further rows like these."] if len(wrong) > 3 else []
        raise ConfigError(wrong[:3] + more)
    return good


def _read_json(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"data.path={path}: there is no such file.")
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        raise ConfigError(f"data.path={path} is empty.")
    if path.suffix == ".json":
        return json.loads(text)
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {error}.") from None
    return rows


def tokenize(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], loss: str, max_length: int
) -> tuple[list[int], list[int]]:
    """Token ids and labels (-100: not supervised) of one conversation, each at most `max_length` long.

    The supervised characters are found by rendering prefixes, so templates without generation markers work:
    an assistant turn starts where its prompt's rendering ends, and includes the end-of-turn token.
    """

    def render(part: list[dict[str, str]], prompt: bool = False) -> str:
        return str(tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=prompt))

    whole = render(turns)
    spans = [(0, len(whole))]
    if loss != "all":
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        if loss == "completion":
            answers = answers[-1:]
        spans = []
        for i in answers:
            before, after = render(turns[:i], prompt=True), render(turns[: i + 1])
            if not (whole.startswith(before) and whole.startswith(after)):
                raise ValueError("the chat template renders a turn differently once others follow; set data.loss=all")
            spans.append((len(before), len(after)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    bos = tokenizer.bos_token_id
    starts = [start for start, _ in encoded["offset_mapping"]]
    labels = [
        token if any(a <= start < b for a, b in spans) else -100 for token, start in zip(ids, starts, strict=True)
    ]
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    if adds_bos and ids[:1] != [bos]:
        ids, labels = [bos, *ids], [bos if loss == "all" else -100, *labels]
    return ids[:max_length], labels[:max_length]


def build_tokens(conf: DataConf, tokenizer: PreTrainedTokenizerBase, max_length: int, cache: Path) -> Path:
    """The folder of the token cache, built where it is not there yet; whole or absent."""
    rows = read_rows(conf)
    what = [CODE_VERSION, rows, conf.loss, max_length, tokenizer.chat_template, tokenizer.get_vocab()]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    target = cache / "tokens" / key
    if target.is_dir():
        return target
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    for number, turns in enumerate(rows, 1):
        try:
            ids, labels = tokenize(tokenizer, turns, conf.loss, max_length)
        except ValueError as error:
            raise ConfigError(f"{data_path(conf)}, row {number}: {error}.") from None
        if all(label == -100 for label in labels):
            raise ConfigError(
                f"{data_path(conf)}, row {number}: no supervised token is left within trainer.max_length={max_length}; raise it."
            )
        columns["input_ids"].append(ids)
        columns["labels"].append(labels)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{key}.{os.getpid()}")
    Dataset.from_dict(columns).save_to_disk(building)
    try:
        building.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(building)
    return target


def load_tokens(folder: Path) -> Dataset:
    """Columns input_ids and labels."""
    return load_from_disk(folder)
