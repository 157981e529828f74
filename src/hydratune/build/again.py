"""What to type to have a run evaluated again."""

import shlex
from pathlib import Path

from hydratune.config.saved import read_saved
from hydratune.config.schema import ConfigError


def again(run: Path | str, *settings: str, tasks_of: Path | None = None) -> str:
    """The command as a shell takes it. `tasks_of`: the run whose tasks are asked for, where it is another.

    The folder of tasks is typed too: its files may name code, so that none is taken from a saved file unsaid.
    """
    include = next(filter(None, map(_include, [tasks_of or run, run])), None)
    folder = [f"benchmark.include_path={include}"] if include else []
    return " ".join(map(_quoted, ["hydratune", f"run_dir={run}", "stages=[evaluate]", *settings, *folder]))


def _include(run: Path | str) -> str | None:
    try:
        return read_saved(Path(run)).benchmark.include_path
    except ConfigError:  # it has no whole config.yaml
        return None


def _quoted(word: str) -> str:
    """As the shell takes it literally; a text that has quotes of Hydra's stays readable."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)
