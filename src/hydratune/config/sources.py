"""Where each setting stands: the YAML files that a command line composes, line by line, and its overrides."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.load import CONF_DIR
from hydratune.config.typed import Typed
from hydratune.config.values import suggestion


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


def group_options(loader: ConfigLoader, group: str) -> list[str]:
    """The names of a group's options; empty where there is no such group."""
    return list(loader.get_group_options(group, results_filter=ObjectType.CONFIG))


def read_sources(typed: Typed) -> Sources:
    """The settings of the files that `typed` chooses, and then the typed ones.

    A group option that isn't there, a file that isn't YAML and a wrong defaults list become problems; what they
    stand for is left out, and the rest is read.
    """
    found, loader = Sources(), config_loader(typed.config_dir)
    chosen: list[str] = []
    values: list[tuple[str, Override]] = []
    for text in typed.overrides:
        try:
            override = parse(text, loader)
        except HydraException:
            found.problems.append((text, "is no override: type KEY=VALUE, and quote what holds spaces, commas or ="))
            continue
        if group_options(loader, override.key_or_group):
            if _sound_choice(override, loader, found):
                chosen.append(text)
        else:
            values.append((text, override))
    for config_path, package, option in _files(typed, chosen, loader, found):
        path = _locate(loader, config_path)
        if path:
            found.settings += _settings_of(path, package, option, found)
    for text, override in values:
        if override.is_sweep_override():
            sweep = override.sweep_iterator() if override.is_discrete_sweep() else ()
            found.settings += [Setting(override.get_key_element(), value, text) for value in sweep]
        else:
            found.settings.append(Setting(override.get_key_element(), override.value(), text))
    return found


def _sound_choice(override: Override, loader: ConfigLoader, found: Sources) -> bool:
    """Whether each option that a group override names is there."""
    group, text = override.key_or_group, override.input_line or ""
    if override.is_delete():
        found.problems.append((text, f"a group can't be taken away: choose another option, {group}=OPTION"))
        found.spoilt.add(group)
        return False
    names = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    for name in names:
        for one in name if isinstance(name, list) else [name]:
            problem = _no_option(loader, group, one)
            if problem:
                found.problems.append((text, problem))
                found.spoilt.add(group)
                return False
    return True


def _no_option(loader: ConfigLoader, group: str, name: Any) -> str | None:
    options = group_options(loader, group)
    if name is None or name in options or "${" in str(name):
        return None
    return f"{group} has no option {name!r}{suggestion(str(name), options)}: it has {', '.join(options)}"


def _files(typed: Typed, chosen: list[str], loader: ConfigLoader, found: Sources) -> Iterator[tuple[str, str, str]]:
    """Name, package and group option of each file that is composed, in order; drops what can't be composed."""
    while True:
        try:
            mode = RunMode.MULTIRUN if typed.multirun else RunMode.RUN
            single = [text for text in chosen if not parse(text, loader).is_sweep_override()]
            defaults = loader.compute_defaults_list(typed.config_name, single, mode).defaults
            break
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            culprit = next((text for text in reversed(chosen) if _spoils(typed, text, loader, found)), None)
            if culprit is None:
                if not _check_defaults(loader, typed.config_name, found):
                    found.problems.append((typed.config_name, " ".join(str(error).split())))
                found.spoilt.add("")
                return
            chosen = [text for text in chosen if text != culprit]
    for default in defaults:
        name = default.config_path
        if name and not name.startswith("hydra/"):
            group, _, option = name.rpartition("/")
            yield name, default.package or "", f"{group}={option}" if group else ""


def _spoils(typed: Typed, text: str, loader: ConfigLoader, found: Sources) -> bool:
    """Whether the file that the group override `text` chooses can't be composed; notes why."""
    override = parse(text, loader)
    names = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    if any([_check_defaults(loader, f"{override.key_or_group}/{name}", found) for name in names]):
        found.spoilt.add(override.key_or_group)
        return True
    return False


def _check_defaults(loader: ConfigLoader, config_path: str, found: Sources) -> bool:
    """Note what is wrong with the file and its defaults list; whether anything is."""
    path = _locate(loader, config_path)
    tree = _tree(path, found) if path else None
    before = len(found.problems)
    if path and tree is None:
        return True
    for key, node in _entries(tree):
        if key != "defaults" or not isinstance(node, yaml.SequenceNode):
            continue
        for entry in node.value:
            if not isinstance(entry, yaml.MappingNode):
                continue
            for name, option in _entries(entry):
                _check_default(loader, config_path, f"{path}:{entry.start_mark.line + 1}", name, option, found)
    return len(found.problems) > before


def _check_default(
    loader: ConfigLoader, config_path: str, place: str, name: str, option: yaml.Node, found: Sources
) -> None:
    group = name.removeprefix("optional ").removeprefix("override ").partition("@")[0].strip()
    parent = config_path.rpartition("/")[0]
    group = group.removeprefix("/") if group.startswith("/") or not parent else f"{parent}/{group}"
    if not group_options(loader, group):
        near = suggestion(group, [*loader.list_groups(""), "hydra/launcher", "hydra/sweeper"])
        found.problems.append((place, f"there is no group {group}{near}"))
    elif isinstance(option, yaml.ScalarNode) and option.tag != "tag:yaml.org,2002:null" and "optional" not in name:
        problem = _no_option(loader, group, option.value)
        if problem:
            found.problems.append((place, problem))


def _locate(loader: ConfigLoader, config_path: str) -> Path | None:
    """The file in the search path; None for what has no file, such as the schema."""
    for source in loader.get_sources():
        if source.scheme() == "file" and (path := Path(source.path) / f"{config_path}.yaml").is_file():
            return _short(path)
    return None


def _short(path: Path) -> Path:
    """As a user would type it: relative where it lies below the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _tree(path: Path, found: Sources) -> yaml.Node | None:
    """The YAML nodes of a file; None, and a problem, where it is not YAML that holds plain data."""
    try:
        OmegaConf.load(path)  # refuses tags, and a key that stands twice
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1 if error.problem_mark or error.context_mark else 1
        found.problems.append((f"{path}:{line}", f"is not YAML of plain data: {error.problem or error}"))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        found.problems.append((str(path), f"is not YAML of plain data: {' '.join(str(error).split())[:200]}"))
    return None


def _entries(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), value


def saved_settings(path: Path) -> list[Setting]:
    """The settings of a run's config.yaml."""
    return list(_settings_of(_short(path.absolute()), "", "", Sources()))


def _settings_of(path: Path, package: str, option: str, found: Sources) -> Iterator[Setting]:
    tree = _tree(path, found)
    if tree is None:
        found.spoilt.add(option.partition("=")[0])
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    late = next((n for n, line in enumerate(lines, 1) if re.match(r"\s*#\s*@package\b", line)), 0)
    if late and any(not re.match(r"\s*#\s*@|\s*$", line) for line in lines[: late - 1]):
        found.problems.append((f"{path}:{late}", "Hydra reads `# @package` at the top of a file only: move it there"))
    data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    yield from _leaves(tree, data, package, str(path), option, at_top=True)


def _leaves(node: yaml.Node, data: Any, prefix: str, path: str, option: str, at_top: bool = False) -> Iterator[Setting]:
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict) or not data:
        if prefix and not at_top:
            yield Setting(prefix, data, f"{path}:{node.start_mark.line + 1}", option)
        return
    for key_node, value in node.value:
        name = key_node.value
        if at_top and name == "defaults":
            continue
        key = f"{prefix}.{name}" if prefix else str(name)
        inner = data.get(name, data.get(_plain(name)))
        if isinstance(value, yaml.MappingNode) and inner:
            yield from _leaves(value, inner, key, path, option)
        else:
            yield Setting(key, inner, f"{path}:{key_node.start_mark.line + 1}", option)


def _plain(name: str) -> Any:
    return yaml.safe_load(name)
