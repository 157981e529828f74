"""A setting and its place, and Hydra's loader over conf/ and the user's own folder."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.plugins.config_source import ConfigResult, ConfigSource

from hydratune.config.load import CONF_DIR
from hydratune.config.plain_yaml import refuse_endless
from hydratune.config.values import groups, suggestion

version.setbase("1.3")  # as main() asks of Hydra: what is read here has to be what Hydra will read

# groups that config.yaml chooses an option of, each at its own place
FIXED = (*groups(), "experiment", "sweep", "cluster")
SWEPT = "hydra.sweeper.params."


@dataclass(frozen=True)
class Setting:
    """A value, and the place where it is written."""

    key: str  # dotted
    value: Any  # plain data; a text with ${…} is an interpolation
    place: str  # file:line, or the override as typed
    chosen: str = ""  # the group option that the file is, such as lora=attention
    form: str = "file"  # how it is written: "typed", or "swept" for a file's hydra.sweeper.params, which are alike


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
    loader = ConfigLoaderImpl(config_search_path=path)
    for source in loader.get_sources():
        if source.provider == "command-line":
            _guard(source)
    return loader


def _guard(source: ConfigSource) -> None:
    """Let Hydra load no file of the user's that would keep it for ever, or end it."""
    load = source.load_config

    def guarded(config_path: str) -> ConfigResult:
        file = Path(source.path) / f"{config_path.removesuffix('.yaml')}.yaml"
        refuse_endless(file.read_text(encoding="utf-8"))
        return load(config_path)

    source.load_config = guarded  # type: ignore[method-assign]


def parse(override: str, loader: ConfigLoader) -> Override:
    """Raises HydraException where it is not an override."""
    return OverridesParser.create(config_loader=loader).parse_override(override)


@cache
def group_options(loader: ConfigLoader, group: str) -> list[str]:
    """The names of a group's options; empty where there is no such group."""
    # not by the loader's own function, which copies all that it knows each time
    return list(cast(ConfigLoaderImpl, loader).repository.get_group_options(group, ObjectType.CONFIG))


def choices_of(override: Override, loader: ConfigLoader) -> list[Any]:
    """The options that a group override names; of a pattern, those that match."""
    value = override.value()
    if isinstance(value, Glob):
        return list(value.filter(group_options(loader, override.key_or_group)))
    return swept_values(override) if override.is_discrete_sweep() else [value]


def swept_values(override: Override) -> list[Any]:
    """The values of a sweep as plain data: value() is that of a single one only."""
    return list(override.sweep_iterator(Override._convert_value))


def no_option(loader: ConfigLoader, group: str, name: Any) -> str | None:
    options = group_options(loader, group)
    if isinstance(name, Glob):
        return f"{group} has no option that matches: it has {', '.join(options)}"
    if isinstance(name, str) and (name in options or "${" in name):
        return None
    folder, _, last = str(name).rpartition("/")
    if folder:
        inner = group_options(loader, f"{group}/{folder}")
        if last in inner:
            return None
        options = [*options, *(f"{folder}/{one}" for one in inner)]
    if problem := misnamed(loader, f"{group}/{name}"):
        return problem
    if name is None:
        return f"a group has an option: type {group}=OPTION, or leave it out"
    ours = group == "cluster" and not any(source.provider == "command-line" for source in loader.get_sources())
    yours = f"; yours is DIR/cluster/{name}.yaml with --config-dir DIR" if ours else ""
    return f"{group} has no option {name!r}{suggestion(str(name), options)}: it has {', '.join(options)}{yours}"


def locate(loader: ConfigLoader, config_path: str, ending: str = "yaml") -> Path | None:
    """The file in the search path; None for what has no file, such as the schema."""
    for source in loader.get_sources():
        if source.scheme() == "file" and (path := Path(source.path) / f"{config_path}.{ending}").is_file():
            return short(path)
    return None


def misnamed(loader: ConfigLoader, config_path: str) -> str | None:
    """That a file is there, but under a name by which Hydra passes over it."""
    path = locate(loader, config_path, "yml")
    return f"{path} has to be called {path.stem}.yaml" if path else None


def short(path: Path) -> Path:
    """As a user would type it: relative where it lies below the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
