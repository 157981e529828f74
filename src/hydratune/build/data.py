"""conf/data -> token ids and labels, cached by everything that decides them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hydratune.build.cache import build_once
from hydratune.build.sockets import load_socket
from hydratune.config.schema import ConfigError, DataConf, RunError
from hydratune.formats import messages

DEMO = Path(__file__).resolve().parents[1] / "demo"
NOT_YET = (".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst")
CODE_VERSION = 1  # raise it when tokens or labels change


def data_path(conf: DataConf) -> str:
    """The file, or the hub id, that `data.path` names."""
    assert conf.path
    return str(DEMO / "train.jsonl") if conf.path == "demo" else conf.path


def read_rows(conf: DataConf) -> dict[int, list[dict[str, str]]]:
    """Row number in the source, from 1 -> its messages; shuffled and limited as asked.

    Raises ConfigError naming file and row.
    """
    path = data_path(conf)
    if Path(path).is_dir():
        rows = _read_json(_split_file(Path(path), conf.split))
    elif path.endswith((".json", ".jsonl")):
        if conf.split != "train":
            raise ConfigError(
                f"data.split={conf.split} is for a folder or for data on the hub, and {path} is a file: leave it out."
            )
        rows = _read_json(Path(path))
    elif Path(path).exists() or path.startswith(("/", ".")) or Path(path).suffix in NOT_YET:
        raise ConfigError(f"data.path={path} must be a .json or .jsonl file, a folder of them, or a hub id.")
    else:
        try:
            rows = load_dataset(path, split=conf.split).to_list()
        except (OSError, ValueError) as error:
            raise ConfigError(f"data.path={path}, split {conf.split}: {' '.join(str(error).split())[:300]}") from None
    if not rows:
        raise ConfigError(f"data.path={path} has no rows.")
    numbers = list(range(len(rows)))
    if conf.shuffle_seed is not None:
        numbers = Dataset.from_dict({"i": numbers}).shuffle(seed=conf.shuffle_seed)["i"]
    formatted = _formatter(conf)
    wrong, good = [], {}
    for number in list(numbers)[: conf.max_rows]:
        try:
            good[number + 1] = messages(formatted(rows[number]), conf.column)
        except ValueError as error:
            wrong.append(f"{path}, row {number + 1}: {error}.")
    if wrong:
        more = [f"… and {len(wrong) - 3} further rows like these."] if len(wrong) > 3 else []
        raise ConfigError(wrong[:3] + more)
    return good


def _formatter(conf: DataConf) -> Callable[[Any], Any]:
    """A row -> a row with the column of messages: as it stands, or as the user's own function makes it."""
    if conf.formatter is None:
        return lambda row: row
    function = load_socket("data.formatter", conf.formatter)
    if not callable(function):
        raise ConfigError(f"data.formatter={conf.formatter} must be a function that takes a row.")

    def formatted(row: Any) -> Any:
        try:
            made = function(row)
        except Exception as error:  # the user's code may raise anything
            raise ValueError(f"data.formatter={conf.formatter} failed: {type(error).__name__}: {error}") from error
        return {conf.column: made} if isinstance(made, list) else made

    return formatted


def _split_file(folder: Path, split: str) -> Path:
    """`<split>.jsonl` or `<split>.json` in `folder`. Raises ConfigError where there is neither, or both."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jsonl"))
    named = [p for p in files if p.stem == split]
    if len(named) != 1:
        found = ", ".join(p.name for p in files) or "no .json or .jsonl file"
        raise ConfigError(f"data.split={split}: {folder} must hold one of {split}.jsonl, {split}.json, found {found}.")
    return named[0]


def _read_json(path: Path) -> list[Any]:
    """The rows of a .json list, or of a .jsonl file."""
    if not path.is_file():
        raise ConfigError(f"data.path={path}: there is no such file.")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line} is not UTF-8: {error.reason}.") from None
    if not text.strip():
        raise ConfigError(f"data.path={path} is empty.")
    if path.suffix == ".json":
        rows = _parse(text, path, 1)
        if not isinstance(rows, list):
            raise ConfigError(f"data.path={path} must hold a list of rows, found {type(rows).__name__}.")
        return rows
    # only \n ends a row: JSON allows the other line separators of Unicode inside a string
    return [_parse(line, path, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parse(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {line + error.lineno - 1} is not JSON: {error.msg}.") from None


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
    how = getattr(tokenizer, "backend_tokenizer", None)
    tokenization = how.to_str() if how else tokenizer.get_vocab()
    what = [
        CODE_VERSION,
        rows,
        conf.loss,
        max_length,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        tokenization,
    ]
    key = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        for number, turns in rows.items():
            try:
                ids, labels = tokenize(tokenizer, turns, conf.loss, max_length)
                if all(label == -100 for label in labels):
                    raise ValueError(f"no supervised token is left within trainer.max_length={max_length}; raise it")
            except (ValueError, TemplateError) as error:
                raise ConfigError(f"{data_path(conf)}, row {number}: {error}.") from None
            columns["input_ids"].append(ids)
            columns["labels"].append(labels)
        Dataset.from_dict(columns).save_to_disk(folder)

    return build_once(cache / "tokens" / key, build)


def open_tokens(
    prepared: Path, conf: DataConf, tokenizer: PreTrainedTokenizerBase, max_length: int, cache: Path
) -> Dataset:
    """The rows that the stage prepare chose, columns input_ids and labels, whatever became of the source since.

    `prepared` is the file that it left. Built again where the cache has lost them. Raises RunError where that gives
    other rows, because the source has changed.
    """
    key = json.loads(prepared.read_text(encoding="utf-8"))["tokens"]
    folder = cache / "tokens" / key
    if not folder.is_dir():
        built = build_tokens(conf, tokenizer, max_length, cache)
        if built.name != key:
            raise RunError(
                f"{data_path(conf)} is not what it was when this run prepared its tokens, and the cache has lost them: "
                "bring it back as it was, or begin in another run_dir."
            )
    return load_tokens(folder)


def load_tokens(folder: Path) -> Dataset:
    """Columns input_ids and labels."""
    return load_from_disk(folder)
