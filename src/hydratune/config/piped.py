"""What comes through standard input."""

import sys
from functools import cache

from hydratune.config.schema import ConfigError


@cache
def standard_input() -> str:
    """All of it; read once, though the command line, the check and the stage ask for it. Raises ConfigError."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise ConfigError("generate.file=- is not UTF-8: save it as UTF-8.") from None


def is_piped() -> bool:
    """Whether there is anything to read there, and it is no terminal: schedulers leave it empty."""
    return bool(sys.stdin and not sys.stdin.isatty() and standard_input().strip())
