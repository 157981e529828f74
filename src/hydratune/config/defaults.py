"""The files that a command line composes, and what is wrong with their defaults lists."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.settings import FIXED, Sources, choices_of, group_options, locate, misnamed, no_option, parse
from hydratune.config.typed import Typed
from hydratune.config.values import suggestion
from hydratune.config.yamlfile import entries, tree_of


def composed_files(
    typed: Typed, chosen: list[str], loader: ConfigLoader, found: Sources
) -> Iterator[tuple[str, str, str]]:
    """Name, package and group option of each file that is composed, in order; drops what can't be composed."""
    while True:
        mode = RunMode.MULTIRUN if typed.multirun else RunMode.RUN
        single = [text for text in chosen if not parse(text, loader).is_sweep_override()]
        try:
            defaults = loader.compute_defaults_list(typed.config_name, single, mode).defaults
            break
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            culprit = next((text for text in reversed(chosen) if _spoils(typed, text, loader, found)), None)
            if culprit is None and not locate(loader, typed.config_name):
                found.problems.append((f"--config-name {typed.config_name}", _no_root(typed, loader)))
            elif culprit is None and not _check_defaults(loader, typed.config_name, found):
                culprit = _first_wrong(loader, typed.config_name, single, mode)
                found.problems.append((culprit or typed.config_name, _in_words(error, culprit)))
            if culprit is None:
                found.spoilt.add("")
                return
            found.spoilt.add(parse(culprit, loader).key_or_group)
            chosen = [text for text in chosen if text != culprit]
    for default in defaults:
        name = (default.config_path or "").removesuffix(".yaml")
        if name and not name.startswith("hydra/"):
            group, _, option = name.partition("/") if name.partition("/")[0] in FIXED else name.rpartition("/")
            yield name, default.package or "", f"{group}={option}" if group else ""


def _no_root(typed: Typed, loader: ConfigLoader) -> str:
    if problem := misnamed(loader, typed.config_name):
        return problem
    names = group_options(loader, "")
    where = f"conf/ or {typed.config_dir}" if typed.config_dir else "conf/; name your own folder with --config-dir"
    return f"there is no such file{suggestion(typed.config_name, names)} in {where}"


def _first_wrong(loader: ConfigLoader, root: str, chosen: list[str], mode: RunMode) -> str | None:
    """The first of the group overrides with which nothing can be composed."""
    for end in range(len(chosen) + 1):
        try:
            loader.compute_defaults_list(root, chosen[:end], mode)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError):
            return chosen[end - 1] if end else None
    return None


def _in_words(error: Exception, culprit: str | None) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    if culprit and "Multiple values for" in said:
        return f"its group has an option already: type {culprit.lstrip('+')}"
    return said.partition(" Config search path")[0]


def _spoils(typed: Typed, text: str, loader: ConfigLoader, found: Sources) -> bool:
    """Whether the file that the group override `text` chooses can't be composed; notes why."""
    override = parse(text, loader)
    names = choices_of(override, loader)
    if any([_check_defaults(loader, f"{override.key_or_group}/{name}", found) for name in names]):
        found.spoilt.add(override.key_or_group)
        return True
    return False


def _check_defaults(loader: ConfigLoader, config_path: str, found: Sources) -> bool:
    """Note what is wrong with the file and its defaults list; whether anything is."""
    path, before = locate(loader, config_path), len(found.problems)
    tree = tree_of(path, found) if path else None
    if path and tree is None:
        return len(found.problems) > before
    found.problems += late_choices(path, config_path) if path else ()
    for key, node in entries(tree):
        if key != "defaults":
            continue
        if not isinstance(node, yaml.SequenceNode):
            found.problems.append((f"{path}:{node.start_mark.line + 1}", "defaults is a list: write - GROUP: OPTION"))
            continue
        for entry in node.value:
            place = f"{path}:{entry.start_mark.line + 1}"
            for name, option in entries(entry):
                _check_default(loader, config_path, place, name, option, found)
            if isinstance(entry, yaml.ScalarNode) and entry.value not in ("_self_", "schema"):
                parent = "" if entry.value.startswith("/") else config_path.rpartition("/")[0]
                group, _, name = f"{parent}/{entry.value}".strip("/").rpartition("/")
                problem = no_option(loader, group, name) if group else None
                if not group and not locate(loader, name):
                    problem = f"{name} is no file: to choose an option, write - {name}: OPTION"
                if problem:
                    found.problems.append((place, problem))
    return len(found.problems) > before


def _check_default(
    loader: ConfigLoader, config_path: str, place: str, name: str, option: yaml.Node, found: Sources
) -> None:
    group = name.removeprefix("optional ").removeprefix("override ").partition("@")[0].strip()
    parent = config_path.rpartition("/")[0]
    group = group.removeprefix("/") if group.startswith("/") or not parent else f"{parent}/{group}"
    chosen = not isinstance(option, yaml.ScalarNode) or option.tag != "tag:yaml.org,2002:null"
    if _too_late(config_path, group):
        return  # whichever option
    if parent and chosen and group in FIXED and not name.startswith("override "):
        found.problems.append((place, f"{group} has an option already: write override /{group}: OPTION"))
    elif not group_options(loader, group):
        bare = group.removeprefix(f"{parent}/")
        near = suggestion(group, [*loader.list_groups(""), "hydra/launcher", "hydra/sweeper"])
        near = f" (did you mean /{bare}?)" if group_options(loader, bare) else near
        found.problems.append((place, f"there is no group {group}{near}"))
    elif isinstance(option, yaml.ScalarNode) and chosen and "optional" not in name:
        problem = no_option(loader, group, option.value)
        if problem:
            found.problems.append((place, problem))


def _too_late(config_path: str, group: str) -> bool:
    """Whether Hydra would pass over a choice of `group` in a group's file, as it is settled before or after that."""
    return "/" in config_path and (group.startswith("hydra/") or group in ("experiment", "sweep"))


def late_choices(path: Path, config_path: str) -> Iterator[tuple[str, str]]:
    """Place and sentence of each choice in a file's defaults list that nothing would come of."""
    for key, node in entries(tree_of(path, Sources())):
        for entry in node.value if key == "defaults" and isinstance(node, yaml.SequenceNode) else ():
            for name, chosen in entries(entry):
                group = name.removeprefix("override ").strip().lstrip("/")
                if _too_late(config_path, group):
                    what = f"{group}={chosen.value}"
                    yield f"{path}:{entry.start_mark.line + 1}", f"{group} can't be chosen here: type {what} instead"
