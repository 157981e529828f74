"""What a shell offers after TAB: groups, options and keys as Hydra finds them, for our own command line."""

import os
import shlex
from contextlib import redirect_stderr
from pathlib import Path

from hydra.plugins.completion_plugin import DefaultCompletionPlugin

from hydratune.config.settings import config_loader
from hydratune.config.values import groups, schema_keys

# options that take the next word
FOLDER, NAME = ("--config-dir", "-cd"), ("--config-name", "-cn")
VALUED = (*FOLDER, *NAME, "--from", "--cfg", "-c", "--package", "-p", "--config-path", "-cp")


def print_completions() -> None:
    """Print what the last word of $COMP_LINE can become, one a line.

    Nothing else, whatever is wrong: a shell would show it in the midst of the line that is being typed.
    """
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        try:
            line = os.environ["COMP_LINE"]
            found = completions(line[: int(os.environ.get("COMP_POINT", len(line)))])
        except (Exception, SystemExit):
            found = []
    print("\n".join(found))


def completions(line: str) -> list[str]:
    """For the last word of `line`, which is empty after a blank."""
    words = [*shlex.split(line), *([""] if line[-1:].isspace() else [])]
    folder, name, typed = None, "config", []
    rest = iter(words[1:-1])
    for word in rest:
        option, equals, value = word.partition("=")
        if option in VALUED and not equals:
            if (following := next(rest, None)) is None:
                return []  # the last word is the option's: the shell offers files
            value = following
        folder = value if option in FOLDER else folder
        name = value if option in NAME else name
        if not word.startswith("-"):
            typed.append(word)
    last = words[-1]
    if last.startswith("-"):
        return []
    loader = config_loader(str(Path(folder).expanduser()) if folder else None)
    set_before = [word for word in typed if "=" in word and not word.split()[1:]]
    found = DefaultCompletionPlugin(loader)._query(name, " ".join(["-m", *set_before, last]))
    bare = [word for word in typed if "=" not in word]
    if bare[:1] == ["explain"]:
        known = {f"{group}=" for group in groups()} | {f"{key}{end}" for key in schema_keys() for end in "=."}
        return [one[:-1] if one in known else one for one in found]
    return [*found, *(["explain"] if not bare and "explain".startswith(last) else [])]
