"""Where each setting stands: the YAML files that a command line composes, line by line, and its overrides."""

from collections.abc import Iterator
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from hydratune.config.cluster import PACKAGE
from hydratune.config.defaults import composed_files, late_choices
from hydratune.config.settings import (
    FIXED,
    SWEPT,
    Setting,
    Sources,
    choices_of,
    config_loader,
    group_options,
    locate,
    no_option,
    parse,
    short,
    swept_values,
)
from hydratune.config.typed import Typed
from hydratune.config.yamlfile import settings_of

NO_OVERRIDE = "is no override: type KEY=VALUE, and quote what holds spaces, commas or ="
NO_SWEEP = "{} is Hydra's own, and a sweep goes over the settings of runs"


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
            found.problems.append((text, NO_OVERRIDE))
            continue
        if not override.key_or_group:
            found.problems.append((text, NO_OVERRIDE))
        elif group_options(loader, override.key_or_group):
            if _sound_choice(override, loader, found):
                chosen.append(text)
        else:
            values.append((text, override))
    read: set[str] = set()
    _read_files(typed, chosen, loader, found, read)
    swept = [
        (setting.place, one)
        for setting in found.settings
        if setting.key.startswith(SWEPT) and (one := _swept(setting, loader, found))
    ]
    for override in [*(parse(text, loader) for text in chosen), *(one for _, one in swept)]:
        if override.is_sweep_override() and group_options(loader, override.key_or_group):
            group = override.key_or_group
            others = [text for text in chosen if parse(text, loader).key_or_group != group]
            for name in choices_of(override, loader):
                _read_files(typed, [*others, f"{group}={name}"], loader, found, read)
    for text, override in values:
        found.settings += _values_of(override, text, found, "typed", typed.searches)
    for place, override in swept:
        if not group_options(loader, override.key_or_group):
            found.settings += _values_of(override, place, found, "swept", typed.searches)
    return found


def _read_files(typed: Typed, chosen: list[str], loader: ConfigLoader, found: Sources, read: set[str]) -> None:
    """Add the settings of the files that are composed with `chosen`, without those in `read`."""
    for config_path, package, option in composed_files(typed, chosen, loader, found):
        path = locate(loader, config_path)
        if path and config_path not in read:
            read.add(config_path)
            found.problems += _shadowed(path, typed.config_dir, config_path)
            found.problems += late_choices(path, config_path)
            if option.startswith("cluster=") and package != PACKAGE:
                found.problems.append((f"{path}:1", f"the first line must be # @package {PACKAGE}"))
                found.spoilt.add("cluster")
                continue
            found.settings += settings_of(path, package, option, found)


def _shadowed(path: Path, config_dir: str | None, config_path: str) -> Iterator[tuple[str, str]]:
    """That Hydra takes our file where the user's folder has one of the same name."""
    own = Path(config_dir or "") / f"{config_path}.yaml"
    if config_dir and own.is_file() and not own.samefile(path):
        yield str(short(own.absolute())), "hydratune has a file of this name, which is taken: give yours another name"


def _values_of(override: Override, place: str, found: Sources, form: str, searches: bool) -> list[Setting]:
    """The setting that an override makes, or the several of a sweep; of an interval, which a search takes, its ends."""
    key = override.get_key_element()
    if override.is_sweep_override() and key.startswith("hydra."):
        found.problems.append((place, NO_SWEEP.format(key)))
        return []
    if not override.is_sweep_override():
        return [Setting(key, override.value(), place, form=form)]
    if override.is_discrete_sweep():
        return [Setting(key, value, place, form=form) for value in swept_values(override)]
    if searches and isinstance(interval := override.value(), IntervalSweep):
        return [Setting(key, value, place, form=form) for value in (interval.start, interval.end)]
    found.problems.append((place, f"a grid takes values one by one: set {key}=VALUE,VALUE"))
    return []


def _swept(setting: Setting, loader: ConfigLoader, found: Sources) -> Override | None:
    """An entry of hydra.sweeper.params in a file, as the override that it stands for, where it is sound."""
    key, value = setting.key.removeprefix(SWEPT), setting.value
    if isinstance(value, dict | list):
        found.problems.append((setting.place, f"{key} takes its values as one text: write {key}: VALUE,VALUE"))
        return None
    try:
        override = parse(f"{key}={'null' if value is None else value}", loader)
    except HydraException:
        found.problems.append((setting.place, f"{key}: {value} {NO_OVERRIDE}"))
        return None
    if key.startswith("hydra."):
        found.problems.append((setting.place, NO_SWEEP.format(key)))
        return None
    group = group_options(loader, override.key_or_group)
    return override if not group or _sound_choice(override, loader, found, setting.place) else None


def _sound_choice(override: Override, loader: ConfigLoader, found: Sources, place: str = "") -> bool:
    """Whether each option that a group override names is there."""
    group, text = override.key_or_group, place or override.input_line or ""
    if override.is_delete():
        found.problems.append((text, f"a group can't be taken away: choose another option, {group}=OPTION"))
        found.spoilt.add(group)
        return False
    if group in FIXED and override.package:
        found.problems.append((text, f"{group} has its place, which can't be changed: type {group}=OPTION"))
        found.spoilt.add(group)
        return False
    for name in choices_of(override, loader) or [override.value()]:
        for one in name if isinstance(name, list) else [name]:
            problem = no_option(loader, group, one)
            if problem:
                found.problems.append((text, problem))
                found.spoilt.add(group)
                return False
    return True
