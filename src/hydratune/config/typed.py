"""The command line, taken apart: overrides, and the few options that are not overrides."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from hydratune.config.piped import is_piped
from hydratune.config.schema import ConfigError

OVERRIDE = re.compile(r"[+~]*[\w./@-]+=|~")


@dataclass(frozen=True)
class Typed:
    """What stands after `hydratune`. `rest` is what Hydra gets."""

    overrides: list[str] = field(default_factory=list)
    config_dir: str | None = None
    config_name: str = "config"
    multirun: bool = False
    completes: bool = False  # asked by a shell, with words that are not overrides
    asked: list[str] | None = None  # what `explain` is to explain; None without it
    from_run: str | None = None
    rows: list[int] | None = None  # that `data` is to show; None without it
    prefetches: bool = False  # only brings what a run needs from the hub
    compared: list[str] | None = None  # the runs that `compare` is to compare; None without it
    sweep: list[str] | None = None  # what follows `sweep`, which looks at one that is there
    rest: list[str] = field(default_factory=list)

    def without(self, words: list[str]) -> "Typed":
        """The same without some of its overrides."""
        return replace(self, overrides=[word for word in self.overrides if word not in words])

    def chosen(self, groups: Sequence[str]) -> dict[str, str]:
        """The options that are typed of these groups."""
        split = [word.lstrip("+").partition("=") for word in self.overrides]
        return {group: option for group, _, option in split if group in groups}

    @property
    def searches(self) -> bool:
        """Whether a sweeper is asked for that chooses values by itself, of which a grid knows nothing."""
        return self.chosen(["hydra/sweeper"]).get("hydra/sweeper", "grid") != "grid"


def split_arguments(arguments: list[str]) -> Typed:
    """Raises ConfigError for an option without its value, and for one that there isn't."""
    from hydra._internal.utils import get_args_parser

    arguments, from_run = _take_from(arguments)
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    known = parser.parse_intermixed_args(arguments)
    modes = [f"--{mode}" for mode in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(known, mode)]
    if len(modes) > 1:
        raise ConfigError(f"{' and '.join(modes)} exclude each other: type one of them.".replace("_", "-"))
    if known.config_dir and not Path(known.config_dir).is_dir():
        raise ConfigError(f"--config-dir {known.config_dir}: there is no such folder.")
    options = [argument for argument in arguments if argument not in known.overrides]
    verb = known.overrides[0] if known.overrides else ""
    if verb in ("compare", "sweep") and not {"-h", "--help"} & set(options):
        if options or from_run:
            usage = "compare RUN RUN ..." if verb == "compare" else "sweep status|logs|report|best|resume|cancel DIR"
            raise ConfigError(f"{(options or ['--from'])[0]} has no use here: type hydratune {usage}")
        return Typed(**{"compared" if verb == "compare" else "sweep": known.overrides[1:]})
    overrides, asked = _take_explain(list(known.overrides))
    overrides, prefetches = _take_prefetch(overrides)
    overrides, rows = _take_data(_take_generate(overrides))
    # Hydra's own parser takes overrides on one side of its options only
    rest = options + overrides
    # Hydra ignores a launcher without -m; a sweep of one is what was meant
    sweeps = any(word.lstrip("+").startswith(("hydra/launcher=", "sweep.")) for word in overrides)
    launched = not (known.multirun or known.cfg) and sweeps
    return Typed(
        overrides=overrides,
        config_dir=known.config_dir,
        config_name=known.config_name or "config",
        multirun=known.multirun or launched,
        completes=known.shell_completion,
        asked=asked,
        from_run=from_run,
        rows=rows,
        prefetches=prefetches,
        rest=["--multirun", *rest] if launched else rest,
    )


def _take_from(arguments: list[str]) -> tuple[list[str], str | None]:
    """`--from RUN` or `--from=RUN`, which Hydra doesn't know."""
    for at, argument in enumerate(arguments):
        if argument == "--from":
            if at + 1 == len(arguments):
                raise ConfigError("--from needs a run's folder: hydratune --from runs/RUN KEY=VALUE ...")
            return arguments[:at] + arguments[at + 2 :], arguments[at + 1]
        if argument.startswith("--from="):
            return arguments[:at] + arguments[at + 1 :], argument.removeprefix("--from=")
    return arguments, None


def _take_explain(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The overrides, and the keys and groups to explain, which are the words that set nothing."""
    bare = [word for word in words if "=" not in word and not word.startswith("~")]
    if bare[:1] != ["explain"]:
        return words, None
    return [word for word in words if word not in bare], bare[1:]


def _take_data(words: list[str]) -> tuple[list[str], list[int] | None]:
    """The overrides, and the numbers of the rows to show, which are the words that set nothing."""
    bare = [word for word in words if not OVERRIDE.match(word)]
    if bare[:1] != ["data"]:
        return words, None
    for word in bare[1:]:
        if not word.isdecimal() or int(word) == 0:
            raise ConfigError(f"hydratune data takes numbers of rows, from 1, and KEY=VALUE, found {word!r}.")
    return [word for word in words if word not in bare] + ["stages=[prepare]"], [int(word) for word in bare[1:]]


def _take_prefetch(words: list[str]) -> tuple[list[str], bool]:
    """The overrides, and whether the first of the other words is `prefetch`."""
    bare = [word for word in words if not OVERRIDE.match(word)]
    if bare[:1] != ["prefetch"]:
        return words, False
    if bare[1:]:
        raise ConfigError(f"hydratune prefetch takes the KEY=VALUE of a run, found {bare[1]!r}.")
    return [word for word in words if word not in bare], True


def _take_generate(words: list[str]) -> list[str]:
    """`generate`, prompts and overrides, as overrides alone; without a prompt, standard input where it is no terminal."""
    prompts = [word for word in words if not OVERRIDE.match(word)]
    if prompts[:1] != ["generate"]:
        return words
    overrides = [word for word in words if OVERRIDE.match(word)]

    def names(key: str) -> bool:
        return any(word.startswith(f"{key}=") for word in overrides)

    if prompts[1:]:
        overrides.append(f"generate.prompts=[{','.join(quoted(prompt) for prompt in prompts[1:])}]")
    elif (
        not names("generate.prompts")
        and not names("generate.file")
        and not {"-h", "--help"} & set(sys.argv)
        and is_piped()
    ):
        overrides.append("generate.file=-")
    # what a saved run was asked before is not asked again beside it
    if names("generate.prompts") and not names("generate.file"):
        overrides.append("generate.file=null")
    elif names("generate.file") and not names("generate.prompts"):
        overrides.append("generate.prompts=[]")
    return [*overrides, "stages=[generate]"]


def quoted(text: str) -> str:
    """A text as Hydra's grammar quotes it, with nothing in it taken for an interpolation."""
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return "'" + text.replace("${", "\\${") + "'"


def _refuse(message: str) -> NoReturn:
    found = re.sub(r"^unrecognized arguments: ", "", message)
    raise ConfigError(f"{found}: there is no such option; type hydratune --help." if found != message else f"{found}.")
