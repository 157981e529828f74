"""The token cache: examples as token ids and labels, keyed by everything that decides them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hydratune.build.cache import build_once
from hydratune.build.data import Part, formatter_digest, training_parts, validation_parts
from hydratune.build.rendering import Renderer
from hydratune.build.store import Prepared, damage, seal
from hydratune.build.tokenizing import Tokenizing
from hydratune.config.schema import DataConf, RunError

# the code that decides tokens and labels, so that a change of it never takes what an earlier version has made
CODE = ("../formats.py", "data.py", "packing.py", "rendering.py", "rows.py", "sources.py", "store.py", "tokenizing.py")


def build_tokens(
    conf: DataConf,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache: Path,
    waiting: Callable[[str], None] | None = None,
) -> Path:
    """The folder of the token cache, built where it is not there yet or damaged; whole or absent.

    `waiting` is told who builds it, where another process does. Raises ConfigError naming file and row.
    """
    parts, held_out = training_parts(conf), validation_parts(conf)
    target = cache / "tokens" / _key(conf, parts, held_out, tokenizer, max_length)
    if target.is_dir() and damage(target):
        shutil.rmtree(target)

    def build(folder: Path) -> None:
        folder.mkdir()
        seal(folder, Tokenizing(conf, Renderer(tokenizer), max_length, folder).run(parts, held_out))

    return build_once(target, build, waiting)


def open_tokens(
    prepared: Path, conf: DataConf, tokenizer: PreTrainedTokenizerBase, max_length: int, cache: Path
) -> Prepared:
    """The rows that the stage prepare chose, whatever became of the source since. `prepared` is the file that it left.

    Built again where the cache has lost them. Raises RunError where that gives other rows, because the source has
    changed.
    """
    key = json.loads(prepared.read_text(encoding="utf-8"))["tokens"]
    folder = cache / "tokens" / key
    if not folder.is_dir() or damage(folder):
        built = build_tokens(conf, tokenizer, max_length, cache)
        if _content(built.name) != _content(key):
            raise RunError(
                f"{conf.path or 'data.mix'} is not what it was when this run prepared its tokens, and the cache has "
                "lost them: bring it back as it was, or begin in another run_dir."
            )
    return Prepared(folder)


def token_key(conf: DataConf, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """The name of the folder that `build_tokens` would find or build. Raises ConfigError where there are no rows."""
    return _key(conf, training_parts(conf), validation_parts(conf), tokenizer, max_length)


def _key(
    conf: DataConf, parts: list[Part], held_out: list[Part], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> str:
    how = getattr(tokenizer, "backend_tokenizer", None)
    # where the rows are counts for nothing, but what they are
    kept = {key: value for key, value in asdict(conf).items() if "path" not in key and key != "mix"}
    what = [
        [hashlib.sha256((Path(__file__).parent / name).read_bytes()).hexdigest() for name in CODE],
        [version(library) for library in ("tokenizers", "transformers")],
        [part.identity() for part in parts],
        [part.identity() for part in held_out],
        # how rows become batches is no matter of tokens
        {**kept, "name": None, "revision": None, "split": None, "validation_split": None, "padding_free": None},
        formatter_digest(conf),
        max_length,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        how.to_str() if how else tokenizer.get_vocab(),
    ]
    # equal rows of two files are told apart by the end alone: each row is named by its file wherever it is spoken of
    names = [str(file) for part in [*parts, *held_out] for file in part.source.files]
    return f"{_hash(what, 16)}-{_hash(names, 4)}"


def _content(key: str) -> str:
    """The part of a folder's name that tells what the rows are, and not where."""
    return key.partition("-")[0]


def _hash(value: Any, digits: int) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:digits]
