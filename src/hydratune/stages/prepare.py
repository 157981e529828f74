"""Build the token cache and pass the data gate: on a CPU, without weights."""

from typing import Any

from hydratune.build.gate import course, findings, table
from hydratune.build.hardware import Hardware
from hydratune.build.leaks import leaks
from hydratune.build.model import load_tokenizer
from hydratune.build.source import model_source
from hydratune.build.store import Prepared
from hydratune.build.tokens import build_tokens
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config
from hydratune.run.console import say
from hydratune.run.layout import RunDir, write_json


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Writes prepared.json. Metrics: rows, tokens, supervised tokens; under `findings` what may be a mistake."""
    cache = cache_dir(config)
    source = model_source(config.model, cache)
    tokenizer = load_tokenizer(config.model, source)

    def waiting(holder: str) -> None:
        say(f"  waiting for {holder}, which prepares the same rows")

    folder = build_tokens(config.data, tokenizer, config.trainer.max_length, cache, waiting)
    prepared = Prepared(folder)
    ahead = course(config, prepared.report)
    for line in table(prepared.report, ahead):
        say(f"  {line}")
    said = [*findings(config, prepared.report, ahead, tokenizer, source), *leaks(config, prepared, tokenizer, cache)]
    for sentence in said:
        say(f"  warning: {sentence}")
    write_json(run.prepared, {"tokens": folder.name, **prepared.report})
    training = prepared.report["training"]
    metrics: dict[str, Any] = {f"prepare/{name}": training[name] for name in ("rows", "tokens", "supervised_tokens")}
    metrics["prepare/validation_rows"] = prepared.report.get("validation", {}).get("rows", 0)
    return metrics | {"findings": said}
