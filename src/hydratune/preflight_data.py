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


def check_own_tasks(config: Config) -> None:
    """That the rows of benchmark.own_tasks can be asked about, and that no task of benchmark.include_path is called the same.

    Raises ConfigError naming file and row.
    """
    conf = config.benchmark
    names = [name for name in conf.tasks if name in conf.own_tasks]
    if not names:
        return
    from hydratune.build import own_tasks
    from hydratune.build.benchmark import task_folder
    from hydratune.build.model import load_tokenizer, run_tokenizer
    from hydratune.build.source import locate
    from hydratune.build.task_index import Tasks

    tokenizer, wrong = None, []
    merged = Path(config.run_dir or "") / "merged"
    try:
        theirs = Tasks(task_folder(conf), []).task_index  # of benchmark.include_path alone
        wrong = [
            f"benchmark.own_tasks.{name} is called as a task of benchmark.include_path={conf.include_path}: give it "
            "another name."
            for name in names
            if name in theirs
        ]
        # the merged model alone is asked by its own, and nothing of the base may be here
        tokenizer = run_tokenizer(config.model, [merged]) if set(conf.models) == {"merged"} else None
        if tokenizer is None:
            source, gguf = locate(config.model, cache_dir(config))
            tokenizer = load_tokenizer(config.model, source, **gguf)
    except ConfigError:
        pass  # other checks say it
    try:
        own_tasks.check_own_tasks(conf, tokenizer)
    except ConfigError as error:
        wrong += error.sentences
    if wrong:
        raise ConfigError(wrong)
