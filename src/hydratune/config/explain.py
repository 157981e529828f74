"""`hydratune explain lora.r`: a setting's value, where it comes from, its type, unit and meaning."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode

from hydratune.config.diagnose import diagnose
from hydratune.config.load import to_config
from hydratune.config.saved import has_trained, make_absolute, settled, start_from, typed_keys
from hydratune.config.schema import Config, ConfigError
from hydratune.config.secrets import redacted, redacted_override
from hydratune.config.settings import SWEPT, Setting, Sources, config_loader, parse
from hydratune.config.sources import read_sources
from hydratune.config.typed import Typed
from hydratune.config.values import groups, owner, schema_keys, type_words, unknown_key, value_problem
from hydratune.config.yamlfile import saved_settings

OPENED = ("run_dir", "stages", "trust")  # of a run that is opened again: as typed, whatever its file says


def explain(typed: Typed) -> None:
    """Print what is known of each key or group that `typed` asks for, and of a sweep's keys, what it does with them."""
    if not typed.asked:
        raise ConfigError("explain needs a key or a group: hydratune explain lora.r experiment=demo")
    unknown = [f"{unknown_key(name)}." for name in typed.asked if name not in groups() and not owner(name)]
    if wrong := unknown + diagnose(typed):
        raise ConfigError(wrong)
    loader = config_loader(typed.config_dir)
    single = typed.without([text for text in typed.overrides if parse(text, loader).is_sweep_override()])
    composed = loader.load_configuration(typed.config_name, single.overrides, RunMode.RUN)
    sweeping = typed.multirun or composed.hydra.mode == RunMode.MULTIRUN
    given = to_config(composed)
    make_absolute(given)
    if typed.from_run:
        given = start_from(Path(typed.from_run), given, single)
    # each job of a sweep has a folder and rules of its own
    config = given if sweeping else settled(composed, single)
    found = read_sources(single)
    written = _in_order(single, _without_sweeps(found), given, config)
    sweeps = _sweeps(typed, found, loader) if sweeping else {}
    print("\n\n".join(_described(key, config, written, sweeps) for key in _keys(typed.asked)))


def _keys(names: list[str]) -> list[str]:
    inner = {name: [key for key in schema_keys() if key.startswith(f"{name}.")] for name in groups()}
    return list(dict.fromkeys(key for name in names for key in inner.get(name, [name])))


def _without_sweeps(found: Sources) -> list[Setting]:
    """The settings of a single composition."""
    swept = {(one.key.removeprefix(SWEPT), one.place) for one in found.settings if one.key.startswith(SWEPT)}
    return [one for one in found.settings if (one.key, one.place) not in swept]


def _sweeps(typed: Typed, found: Sources, loader: ConfigLoader) -> dict[str, tuple[str, str]]:
    """Key or group -> the values that it takes, and where they stand. What is typed replaces what a file sweeps."""
    values: dict[str, tuple[str, str]] = {}
    for one in found.settings:
        if one.key.startswith(SWEPT):
            key = one.key.removeprefix(SWEPT)
            values[key] = redacted(str(one.value), key.rpartition(".")[2]), _place(one)
    for text in typed.overrides:
        override = parse(text, loader)
        values.pop(override.get_key_element(), None)
        if override.is_sweep_override():
            place = redacted_override(text)
            values[override.get_key_element()] = place.partition("=")[2], place
    return {key.lstrip("+"): said for key, said in values.items()}


def _in_order(typed: Typed, found: list[Setting], given: Config, config: Config) -> list[Setting]:
    """Files, then the saved run that is the base, then what was typed; last what another saved run changes in that.

    `given` is the configuration before the run's own folder was looked at.
    """
    files = [setting for setting in found if setting.place not in typed.overrides]
    # a run that is opened again does all that is left, unless stages are typed
    files = [setting for setting in files if setting.key != "stages" or setting.value == config.stages]
    words = [setting for setting in found if setting.place in typed.overrides]
    keys, opened = typed_keys(typed), Path(config.run_dir or "") / "config.yaml"
    chosen = {"experiment", "sweep"} & set(keys)
    if typed.from_run:
        ours = ["run_dir", "stages", *(key for key in keys if key in groups())]
        files += _saved(Path(typed.from_run) / "config.yaml", ours)
    elif "run_dir" in keys and opened.is_file():
        if has_trained(opened.parent) or not chosen:
            files += _saved(opened, [*OPENED, *keys, *(["benchmark", "generate"] if "experiment" in keys else [])])
        return files + words
    changed = []
    if opened.is_file():
        before, after = asdict(given), asdict(config)
        for setting in _saved(opened, OPENED):
            if _values(before, setting.key) != _values(after, setting.key):
                changed.append(setting)
    return files + words + changed


def _saved(path: Path, without: list[str] | tuple[str, ...]) -> list[Setting]:
    return [
        setting
        for setting in saved_settings(path)
        if not any(f"{setting.key}.".startswith(f"{key}.") for key in without)
    ]


def _values(node: Any, key: str) -> list[Any]:
    """The value under a dotted key, or none; a mapping's names may hold dots themselves."""
    if not isinstance(node, dict):
        return []
    here = [value for name, value in node.items() if str(name) == key]
    return here or [
        value
        for name, inner in node.items()
        if key.startswith(f"{name}.")
        for value in _values(inner, key.removeprefix(f"{name}."))
    ]


def _described(key: str, config: Config, settings: list[Setting], sweeps: dict[str, tuple[str, str]]) -> str:
    values, mapping = _values(asdict(config), key), owner(key)
    if not values and not any(_overlap(name, key) for name in sweeps):
        names = ", ".join(_values(asdict(config), mapping)[0]) or "no entries"
        raise ConfigError(f"{value_problem(key, None) or f'{key} is not set: {mapping} has {names}'}.")
    field = schema_keys()[mapping][1]
    unit = f", {field.metadata['unit']}" if field.metadata["unit"] else ""
    written = [one for one in settings if _sets(one, key)]
    places = [_place(one) for one in written]
    lines = [f"{key} = {_shown(key, values[0])}" if values else f"{key} is not set"]
    lines.append(f"  {field.metadata['meaning']}")
    lines.append(f"  {type_words(key)}{unit}" if key == mapping else f"  an entry of {mapping}")
    if values:
        lines.append(f"  from {places[-1] if places else 'the schema: its default'}")
    lines += [f"  over {place}" for place in dict.fromkeys(reversed(places[:-1]))]
    for name, (said, place) in sweeps.items():
        if _concerns(name, key):
            lines.append(f"  swept {said if name == key else f'{name}={said}'} by {place}")
    return "\n".join(lines)


def _sets(setting: Setting, key: str) -> bool:
    name = setting.key.lstrip("+")
    whole = key.startswith(f"{name}.") and bool(_values(setting.value, key.removeprefix(f"{name}.")))
    return f"{name}.".startswith(f"{key}.") or whole


def _shown(key: str, value: Any) -> str:
    shown = yaml.safe_dump(redacted(value, key.rpartition(".")[2]), default_flow_style=True, width=200).strip()
    return shown.removesuffix("...").strip()


def _place(setting: Setting) -> str:
    return redacted_override(setting.place) + (f" ({setting.chosen})" if setting.chosen else "")


def _concerns(swept: str, key: str) -> bool:
    """Whether a sweep over a key or a group may change `key`; an experiment, or a group of one's own, sets any key."""
    return _overlap(swept, key) or not (owner(swept) or swept in groups())


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
