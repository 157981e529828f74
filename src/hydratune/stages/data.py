"""Show the rows as the trainer will see them: the gate's table, and tokens with the supervised ones marked."""

from collections.abc import Sequence
from typing import Any

from hydratune.build.gate import course, findings, table
from hydratune.build.leaks import leaks
from hydratune.build.model import load_tokenizer
from hydratune.build.source import model_source
from hydratune.build.store import Prepared
from hydratune.build.tokens import build_tokens
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, ConfigError
from hydratune.run.console import on_terminal, say

SHOWN = 3  # rows, where none is asked for
GREEN, PLAIN = "\x1b[32;4m", "\x1b[0m"


def show(config: Config, numbers: Sequence[int]) -> None:
    """Print the table, the warnings, and the rows of these numbers in their files, or the first ones.

    Raises ConfigError for a number that no row has.
    """
    cache = cache_dir(config)
    source = model_source(config.model, cache)
    tokenizer = load_tokenizer(config.model, source)
    prepared = Prepared(build_tokens(config.data, tokenizer, config.trainer.max_length, cache, say))
    ahead = course(config, prepared.report)
    rows, sources = prepared.rows, prepared.report["training"]["sources"]
    wanted = _rows_of(rows, numbers) if numbers else range(min(SHOWN, len(rows)))
    for line in table(prepared.report, ahead):
        say(line)
    for sentence in [
        *findings(config, prepared.report, ahead, tokenizer, source),
        *leaks(config, prepared, tokenizer, cache),
    ]:
        say(f"warning: {sentence}")
    for row in (rows[index] for index in wanted):
        supervised = sum(label != -100 for label in row["labels"])
        say(f"\n{sources[row['file']]}, row {row['number']}: {len(row['labels'])} tokens, {supervised} supervised")
        say(marked(tokenizer, row["input_ids"], row["labels"], on_terminal()))


def marked(tokenizer: Any, ids: list[int], labels: list[int], coloured: bool) -> str:
    """The row's text with a bar between tokens; the supervised ones green, or without colours in «»."""
    parts, inside = [], False
    for token, label in zip(ids, labels, strict=True):
        supervised = label != -100
        if supervised != inside:
            parts.append((GREEN if supervised else PLAIN) if coloured else ("«" if supervised else "»"))
        elif parts:
            parts.append("|")
        inside = supervised
        parts.append(tokenizer.decode([token]))
    return "".join(parts) + ((PLAIN if coloured else "»") if inside else "")


def _rows_of(rows: Any, numbers: Sequence[int]) -> list[int]:
    where: dict[int, list[int]] = {}
    for index, number in enumerate(rows["number"]):
        where.setdefault(number, []).append(index)
    missing = [str(number) for number in numbers if number not in where]
    if missing:
        raise ConfigError(
            f"There is no training row {', '.join(missing)}: it may be held out, left out, or beyond the {len(rows)} rows."
        )
    return [index for number in numbers for index in where[number]]
