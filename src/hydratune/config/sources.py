"""Where each setting stands: the YAML files that a command line composes, line by line, and its overrides."""

from collections.abc import Iterator
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

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
    for config_path, package, option in composed_files(typed, chosen, loader, found):
        path = locate(loader, config_path)
        if path:
            found.problems += _shadowed(path, typed.config_dir, config_path)
            found.problems += late_choices(path, config_path)
            found.settings += settings_of(path, package, option, found)
    for text, override in values:
        found.settings += _values_of(override, text, found)
    for setting in [s for s in found.settings if s.key.startswith(SWEPT) and s.place not in typed.overrides]:
        found.settings += _swept(setting, loader, found)
    return found


def _shadowed(path: Path, config_dir: str | None, config_path: str) -> Iterator[tuple[str, str]]:
    """That Hydra takes our file where the user's folder has one of the same name."""
    own = Path(config_dir or "") / f"{config_path}.yaml"
    if config_dir and own.is_file() and not own.samefile(path):
        yield str(short(own.absolute())), "hydratune has a file of this name, which is taken: give yours another name"


def _values_of(override: Override, place: str, found: Sources) -> list[Setting]:
    """The setting that an override makes, or the several of a sweep."""
    key = override.get_key_element()
    if override.is_sweep_override() and key.startswith("hydra."):
        found.problems.append((place, NO_SWEEP.format(key)))
        return []
    if not override.is_sweep_override():
        return [Setting(key, override.value(), place)]
    if override.is_discrete_sweep():
        return [Setting(key, value, place) for value in override.sweep_iterator()]
    found.problems.append((place, f"a grid takes values one by one: set {key}=VALUE,VALUE"))
    return []


def _swept(setting: Setting, loader: ConfigLoader, found: Sources) -> list[Setting]:
    """What an entry of hydra.sweeper.params in a file sets, job by job."""
    key, value = setting.key.removeprefix(SWEPT), setting.value
    if isinstance(value, dict | list):
        found.problems.append((setting.place, f"{key} takes its values as one text: write {key}: VALUE,VALUE"))
        return []
    try:
        override = parse(f"{key}={value}", loader)
    except HydraException:
        found.problems.append((setting.place, f"{key}: {value} {NO_OVERRIDE}"))
        return []
    if key.startswith("hydra."):
        found.problems.append((setting.place, NO_SWEEP.format(key)))
        return []
    if group_options(loader, override.key_or_group):
        _sound_choice(override, loader, found, setting.place)
        return []
    return _values_of(override, setting.place, found)


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
