"""A run that is opened again, and a run that another one starts from: a saved configuration as the base."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.diagnose import checked
from hydratune.config.load import FREE, config_hash, to_config
from hydratune.config.schema import STAGES, Config, ConfigError
from hydratune.config.secrets import REDACTED
from hydratune.config.typed import Typed

SOCKETS = ("data.formatter", "trainer.callbacks")  # keys that name Python code


def settled(composed: DictConfig, typed: Typed) -> Config:
    """The configuration of the run that `typed` asks for, its rules held. Raises ConfigError with every sentence."""
    config = plain = to_config(composed)
    if typed.from_run:
        config = start_from(Path(typed.from_run), config, typed)
    config = open_run(config, typed)
    return checked(config, typed, saved=config is not plain)


def read_saved(root: Path) -> Config:
    """The configuration of the run in `root`, as plain data: nothing in it is resolved or imported."""
    path = root / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{root} holds no run: there is no {path}.")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise ConfigError(f"{path} is no configuration: found {type(plain).__name__}.")
        return to_config(plain)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {' '.join(str(error).split())[:300]}") from None


def start_from(root: Path, config: Config, typed: Typed) -> Config:
    """The saved configuration with what was typed put on it, for a new run. `config` is what `typed` composes to."""
    base = read_saved(root)
    for key in typed_keys(typed):
        if key in ("experiment", "sweep"):
            raise ConfigError(
                f"{key}= and --from are two beginnings: leave out one, or type the keys that {key}= was to set."
            )
        put(base, key, _get(config, key))
    if not {"run_dir"} & set(typed_keys(typed)):
        base.run_dir = None
    if "stages" not in typed_keys(typed):
        base.stages = list(STAGES)
    _check_code(base, config, root)
    _check_secrets(base, root)
    return base


def open_run(config: Config, typed: Typed) -> Config:
    """Settle `run_dir`; where it holds a run that has begun, that run's settings with `typed` applied to them.

    Raises ConfigError when an override contradicts what the run was trained with.
    """
    if config.run_dir is None:
        config.run_dir = f"runs/{config.name}-{config_hash(config)}"
    root = Path(config.run_dir)
    if root.exists() and not root.is_dir():
        raise ConfigError(f"run_dir={config.run_dir} is a file: name a folder.")
    if not (root / "config.yaml").is_file():
        return config
    if not any((root / "receipts").glob("*.json")):  # nothing has come of it yet: what was typed may change it
        return config if set(typed_keys(typed)) - {"run_dir", "stages", "trust"} else _as_frozen(root, config)
    saved = read_saved(root)
    _check_code(saved, config, root)
    saved.run_dir, saved.stages, saved.trust = config.run_dir, list(STAGES), config.trust
    wrong = []
    for key in typed_keys(typed):
        if key == "experiment":
            wrong += _differences(saved, config, [k for k in asdict(config) if k not in FREE])
            saved.benchmark, saved.generate = config.benchmark, config.generate
        elif key.partition(".")[0] in FREE:
            put(saved, key, _get(config, key))
        else:
            wrong += _differences(saved, config, [key])
    if wrong:
        raise ConfigError(
            [f"{line}: this run was made with other settings; take another run_dir." for line in dict.fromkeys(wrong)]
        )
    _fill_secrets(saved, config)
    return saved


def _as_frozen(root: Path, config: Config) -> Config:
    """A configuration that was written before its run began, as a sweep does."""
    saved = read_saved(root)
    _check_code(saved, config, root)
    _fill_secrets(saved, config)
    saved.run_dir, saved.stages, saved.trust = config.run_dir, config.stages, config.trust
    return saved


def begun(root: Path, config: Config) -> bool:
    """Whether `root` holds a run of settings other than `config`'s."""
    return (root / "config.yaml").is_file() and config_hash(read_saved(root)) != config_hash(config)


def typed_keys(typed: Typed) -> list[str]:
    """Keys and groups of the overrides, without Hydra's own."""
    keys = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in typed.overrides]
    return [key for key in keys if not key.startswith(("hydra.", "hydra/"))]


def _get(config: Config | dict[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else getattr(node, part)
    return node


def put(config: Config, key: str, value: Any) -> None:
    """Set a dotted key."""
    holder, _, name = key.rpartition(".")
    node = _get(config, holder) if holder else config
    if isinstance(node, dict):
        node[name] = value
    else:
        setattr(node, name, value)


def _check_code(saved: Config, config: Config, root: Path) -> None:
    """Python that a saved file names is imported only where the command line or its files name it too, or trust it."""
    if config.trust:
        return
    for key in SOCKETS:
        named = _get(saved, key)
        if named and named != _get(config, key):
            raise ConfigError(
                f"{root}/config.yaml names Python code, {key}={named}, which hydratune would import: "
                f"type the same {key}, or trust=true."
            )
    if saved.model.trust_remote_code and not config.model.trust_remote_code:
        raise ConfigError(
            f"{root}/config.yaml lets the model bring Python code: type model.trust_remote_code=true, or trust=true."
        )


def _leaves(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, child in value.items() for k, v in _leaves(child, f"{key}.{name}" if key else name).items()}


def _fill_secrets(saved: Config, config: Config) -> None:
    """Secrets are not saved: take them from what was typed this time."""
    given = _leaves(asdict(config), "")
    for key, value in _leaves(asdict(saved), "").items():
        if isinstance(value, str) and REDACTED in value:
            if given.get(key) in (None, value):
                raise ConfigError(f"{key} is not saved with a run, because it is secret: type it again.")
            put(saved, key, given[key])


def _check_secrets(base: Config, root: Path) -> None:
    for key, value in _leaves(asdict(base), "").items():
        if isinstance(value, str) and REDACTED in value:
            raise ConfigError(f"{key} is not saved in {root}/config.yaml, because it is secret: type it again.")


def _differences(saved: Config, typed: Config, keys: list[str]) -> list[str]:
    found = []
    for key in keys:
        old, new = (_leaves(_get(asdict(one), key), key) for one in (saved, typed))
        found += [
            f"{k} is {old.get(k)!r} in {typed.run_dir}/config.yaml and {new.get(k)!r} here"
            for k in {**old, **new}
            if old.get(k) != new.get(k) and REDACTED not in str(old.get(k))
        ]
    return found
