"""The rows, as far as the first of them show, without weights."""

from pathlib import Path

from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, ConfigError


def check_data(config: Config) -> None:
    """That the sources are there and their rows can be read. Raises ConfigError naming file and row."""
    from hydratune.build.data import check_rows

    check_rows(config.data)


def check_rendered(config: Config) -> None:
    """That the chat template takes the first rows, and leaves something to supervise within trainer.max_length.

    Raises ConfigError naming file and row.
    """
    from hydratune.build.data import bad_rows, training_parts, validation_parts
    from hydratune.build.model import load_tokenizer
    from hydratune.build.rendering import Renderer
    from hydratune.build.source import locate
    from hydratune.build.tokenizing import Tokenizing

    try:
        source, gguf = locate(config.model, cache_dir(config))
        tokenizer = load_tokenizer(config.model, source, **gguf)
        parts = [*training_parts(config.data), *validation_parts(config.data)]
    except ConfigError:
        return  # other checks say it
    tokenizing = Tokenizing(config.data, Renderer(tokenizer), config.trainer.max_length, Path("."))
    wrong = tokenizing.first_problems(parts)
    if wrong and config.data.on_bad_row == "error":
        raise bad_rows(wrong)
