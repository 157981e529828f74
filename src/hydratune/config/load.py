"""From a composed Hydra configuration to the typed Config, and to the run directory that it names."""

import hashlib
import json
import os
from dataclasses import asdict, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from hydratune.config.schema import STAGES, Config, ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
# in a wheel conf/ lies in the package, in the repository beside src/
CONF_DIR = next(p for p in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if p.is_dir())
# keys that may change on an existing run; they and where it lies leave its hash alone
FREE = ("run_dir", "name", "stages", "benchmark", "generate", "tracking", "cache_dir")

ConfigStore.instance().store(name="schema", node=Config)


def to_config(composed: DictConfig) -> Config:
    """The typed Config. Rebuilding from plain data refuses what `+key=value` slipped past the schema."""
    plain = OmegaConf.to_container(composed, resolve=True)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    assert isinstance(config, Config)
    return config


def config_hash(config: Config) -> str:
    """8 hexadecimal digits over everything that decides what is trained."""
    kept = {key: value for key, value in asdict(config).items() if key not in FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def cache_dir(config: Config) -> Path:
    """The one root of token caches and converted models."""
    named = config.cache_dir or os.environ.get("HYDRATUNE_CACHE") or "~/.cache/hydratune"
    return Path(named).expanduser().resolve()


def open_run(config: Config, typed: list[str]) -> Config:
    """Settle `run_dir`; where it holds a run that has begun, that run's settings with `typed` applied to them.

    Raises ConfigError when an override contradicts what the run was trained with.
    """
    if config.run_dir is None:
        config.run_dir = f"runs/{config.name}-{config_hash(config)}"
    root = Path(config.run_dir)
    if root.exists() and not root.is_dir():
        raise ConfigError(f"run_dir={config.run_dir} is a file: name a folder.")
    if not (root / "config.yaml").is_file() or not any((root / "receipts").glob("*.json")):
        return config
    saved = to_config(OmegaConf.create(yaml.safe_load((root / "config.yaml").read_text())))
    saved.run_dir, saved.stages = config.run_dir, list(STAGES)
    wrong = []
    for override in typed:
        key = override.lstrip("+~").partition("=")[0]
        if key == "experiment":
            wrong += _differences(saved, config, [k for k in asdict(config) if k not in FREE])
            saved.benchmark, saved.generate = config.benchmark, config.generate
        elif key.partition(".")[0] in FREE:
            holder, _, name = key.rpartition(".")
            value = attrgetter(key)(config)
            setattr(attrgetter(holder)(saved) if holder else saved, name, value)
        else:
            wrong += _differences(saved, config, [key])
    if wrong:
        raise ConfigError(
            [f"{line}: this run was made with other settings; take another run_dir." for line in dict.fromkeys(wrong)]
        )
    return saved


def _differences(saved: Config, typed: Config, keys: list[str]) -> list[str]:
    def leaves(value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {key: value}
        return {k: v for name, child in value.items() for k, v in leaves(child, f"{key}.{name}").items()}

    def pick(config: Config, key: str) -> Any:
        value: Any = asdict(config)
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    found = []
    for key in keys:
        old, new = leaves(pick(saved, key), key), leaves(pick(typed, key), key)
        found += [
            f"{k} is {old.get(k)!r} in {typed.run_dir}/config.yaml and {new.get(k)!r} here"
            for k in {**old, **new}
            if old.get(k) != new.get(k)
        ]
    return found


def keys() -> list[str]:
    """Every key of the schema, dotted."""

    def walk(node: Any, prefix: str) -> list[str]:
        return [
            key
            for f in fields(node)
            for value in [getattr(node, f.name)]
            for key in (walk(value, f"{prefix}{f.name}.") if is_dataclass(value) else [prefix + f.name])
        ]

    return walk(Config(), "")
