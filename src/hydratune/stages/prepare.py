"""Build the token cache: on a CPU, without weights."""

from typing import Any

from hydratune.build.data import build_tokens, load_tokens
from hydratune.build.hardware import Hardware
from hydratune.build.model import load_tokenizer
from hydratune.build.source import model_source
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config
from hydratune.run.console import say
from hydratune.run.layout import RunDir, write_json


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Metrics: rows, tokens and supervised tokens."""
    cache = cache_dir(config)
    tokenizer = load_tokenizer(config.model, model_source(config.model, cache))
    folder = build_tokens(config.data, tokenizer, config.trainer.max_length, cache)
    write_json(run.prepared, {"tokens": folder.name})
    tokens = load_tokens(folder)
    supervised = sum(label != -100 for labels in tokens["labels"] for label in labels)
    total = sum(len(ids) for ids in tokens["input_ids"])
    say(f"  {len(tokens)} rows, {total} tokens, {supervised} of them supervised")
    return {"prepare/rows": len(tokens), "prepare/tokens": total, "prepare/supervised_tokens": supervised}
