"""From a composed Hydra configuration to the typed Config."""

import hashlib
import json
import os
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from hydratune.config import secrets
from hydratune.config.schema import Config

PACKAGE = Path(__file__).resolve().parents[1]
# in a wheel conf/ lies in the package, in the repository beside src/
CONF_DIR = next(p for p in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if p.is_dir())
# keys that may change on an existing run; they and where it lies leave its hash alone
FREE = (
    "run_dir", "name", "stages", "merge", "benchmark", "generate", "tracking", "cache_dir", "trust", "objective", "sweep",
)  # fmt: skip

ConfigStore.instance().store(name="schema", node=Config)
secrets.guard_environment()


def to_config(composed: DictConfig | dict[str, Any]) -> Config:
    """The typed Config. Rebuilding from plain data refuses what `+key=value` slipped past the schema.

    Raises OmegaConf's exceptions; a plain dictionary is taken literally, without interpolation.
    """
    if isinstance(composed, DictConfig):
        if "hydra" in composed:  # a loader's own result; hydra.main has taken it out
            OmegaConf.set_struct(composed, False)
            del composed["hydra"]
        plain = OmegaConf.to_container(composed, resolve=True)
    else:
        plain = composed
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), _literal(plain)))
    assert isinstance(config, Config)
    return config


def _literal(value: Any) -> Any:
    """`value` with each ${ escaped: what was resolved once, or saved, is text."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def config_hash(config: Config) -> str:
    """8 hexadecimal digits over everything that decides what is trained.

    A key at its default is left out, so that a key which the schema gains later changes no run's hash.
    """
    kept = {key: value for key, value in _changed(config).items() if key not in FREE}
    return hashlib.sha256(json.dumps(secrets.redacted(kept), sort_keys=True).encode()).hexdigest()[:8]


def _changed(node: Any) -> dict[str, Any]:
    """The values that differ from the schema's defaults, nested as in the schema."""
    found: dict[str, Any] = {}
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
            if inner := _changed(value):
                found[f.name] = inner
        elif value != (f.default if f.default_factory is MISSING else f.default_factory()):
            found[f.name] = value
    return found


def saved_form(config: Config) -> dict[str, Any]:
    """What config.yaml holds: plain data, secrets out."""
    plain = secrets.redacted(asdict(config))
    assert isinstance(plain, dict)
    if plain["generate"]["file"] == "-":
        plain["generate"]["file"] = None  # what came through a pipe can't be read again
    return plain | {"trust": False}  # it is said anew each time


def cache_dir(config: Config) -> Path:
    """The one root of token caches and converted models."""
    named = config.cache_dir or os.environ.get("HYDRATUNE_CACHE") or "~/.cache/hydratune"
    return Path(named).expanduser().resolve()
