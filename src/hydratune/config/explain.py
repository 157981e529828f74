"""`hydratune explain lora.r`: a setting's value, where it comes from, its type, unit and meaning."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from hydra.types import RunMode

from hydratune.config.saved import settled, typed_keys
from hydratune.config.schema import Config, ConfigError
from hydratune.config.secrets import redacted, redacted_override
from hydratune.config.settings import Setting, config_loader
from hydratune.config.sources import read_sources
from hydratune.config.typed import Typed
from hydratune.config.values import groups, owner, schema_keys, type_words, unknown_key
from hydratune.config.yamlfile import saved_settings


def explain(typed: Typed) -> None:
    """Print what is known of each key or group named in `typed`; what holds a `=` there is an override."""
    names = [word for word in typed.overrides if "=" not in word and not word.startswith("~")]
    typed = typed.without(names)
    if not names:
        raise ConfigError("explain needs a key or a group: hydratune explain lora.r experiment=demo")
    keys = _keys(names)
    composed = config_loader(typed.config_dir).load_configuration(typed.config_name, typed.overrides, RunMode.RUN)
    config = settled(composed, typed)
    settings = _in_order(typed, config)
    print("\n\n".join(_described(key, config, settings) for key in keys))


def _keys(names: list[str]) -> list[str]:
    keys = []
    for name in names:
        if name in groups():
            keys += [key for key in schema_keys() if key.startswith(f"{name}.")]
        elif owner(name):
            keys.append(name)
        else:
            raise ConfigError(f"{unknown_key(name)}.")
    return list(dict.fromkeys(keys))


def _in_order(typed: Typed, config: Config) -> list[Setting]:
    """Files, then the saved run that is the base, then what was typed."""
    found = read_sources(typed).settings
    root = Path(typed.from_run or config.run_dir or "")
    if not (root / "config.yaml").is_file():
        return found
    keys = typed_keys(typed)
    replaced = [key for key in keys if key in groups() or typed.from_run is None]
    saved = [
        setting
        for setting in saved_settings(root / "config.yaml")
        if setting.key not in ("run_dir", "stages") and not any(f"{setting.key}.".startswith(f"{k}.") for k in replaced)
    ]
    files = [setting for setting in found if setting.place not in typed.overrides]
    return [*files, *saved, *(setting for setting in found if setting.place in typed.overrides)]


def _described(key: str, config: Config, settings: list[Setting]) -> str:
    value: Any = asdict(config)
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) and part in value else None
    written = [s for s in settings if s.key.lstrip("+") == key or s.key.lstrip("+").startswith(f"{key}.")]
    field = schema_keys()[owner(key)][1]
    unit = f", {field.metadata['unit']}" if field.metadata["unit"] else ""
    shown = yaml.safe_dump(redacted(value, key.rpartition(".")[2]), default_flow_style=True, width=200).strip()
    places = [f"{redacted_override(s.place)}{f' ({s.chosen})' if s.chosen else ''}" for s in written]
    lines = [f"{key} = {shown.removesuffix('...').strip()}"]
    lines.append(f"  {field.metadata['meaning']}")
    lines.append(f"  {type_words(owner(key))}{unit}")
    lines.append(f"  from {places[-1] if places else 'the schema: its default'}")
    lines += [f"  over {place}" for place in dict.fromkeys(reversed(places[:-1]))]
    return "\n".join(lines)
