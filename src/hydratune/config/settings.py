"""A setting and its place, and Hydra's loader over conf/ and the user's own folder."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from hydratune.config.load import CONF_DIR
from hydratune.config.values import groups, suggestion

FIXED = (*groups(), "experiment", "sweep")  # groups that config.yaml chooses an option of, each at its own place
SWEPT = "hydra.sweeper.params."


@dataclass(frozen=True)
class Setting:
    """A value, and the place where it is written."""

    key: str  # dotted
    value: Any  # plain data; a text with ${…} is an interpolation
    place: str  # file:line, or the override as typed
    chosen: str = ""  # the group option that the file is, such as lora=attention


@dataclass
class Sources:
    """All settings in the order in which they apply, and what stands in the way of reading them."""

    settings: list[Setting] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)  # place, sentence
    spoilt: set[str] = field(default_factory=set)  # groups whose option is not there, files that can't be read


def config_loader(config_dir: str | None) -> ConfigLoader:
    """Hydra's, over conf/ and, before it, the user's own folder."""
    path = create_config_search_path(str(CONF_DIR))
    if config_dir:
        folder = Path(config_dir).absolute()
        path.prepend(provider="command-line", path=f"file://{folder}", anchor="schema")
    return ConfigLoaderImpl(config_search_path=path)


def parse(override: str, loader: ConfigLoader) -> Override:
    """Raises HydraException where it is not an override."""
    return OverridesParser.create(config_loader=loader).parse_override(override)


@cache
def group_options(loader: ConfigLoader, group: str) -> list[str]:
    """The names of a group's options; empty where there is no such group."""
    return list(loader.get_group_options(group, results_filter=ObjectType.CONFIG))


def choices_of(override: Override, loader: ConfigLoader) -> list[Any]:
    """The options that a group override names; of a pattern, those that match."""
    value = override.value()
    if isinstance(value, Glob):
        return list(value.filter(group_options(loader, override.key_or_group)))
    return list(override.sweep_iterator()) if override.is_discrete_sweep() else [value]


def no_option(loader: ConfigLoader, group: str, name: Any) -> str | None:
    options = group_options(loader, group)
    if isinstance(name, Glob):
        return f"{group} has no option that matches: it has {', '.join(options)}"
    if isinstance(name, str) and (name in options or "${" in name):
        return None
    if name is None:
        return f"a group has an option: type {group}=OPTION, or leave it out"
    return f"{group} has no option {name!r}{suggestion(str(name), options)}: it has {', '.join(options)}"


def locate(loader: ConfigLoader, config_path: str) -> Path | None:
    """The file in the search path; None for what has no file, such as the schema."""
    for source in loader.get_sources():
        if source.scheme() == "file" and (path := Path(source.path) / f"{config_path}.yaml").is_file():
            return short(path)
    return None


def short(path: Path) -> Path:
    """As a user would type it: relative where it lies below the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
