"""A run that is opened again, and a run that another one starts from: a saved configuration as the base."""

from dataclasses import asdict, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.diagnose import checked, setting_problem
from hydratune.config.load import FREE, config_hash, to_config
from hydratune.config.plain_yaml import parsed
from hydratune.config.schema import STAGES, Config, ConfigError, SweepConf
from hydratune.config.secrets import REDACTED
from hydratune.config.settings import Sources
from hydratune.config.typed import Typed
from hydratune.config.values import value_problems
from hydratune.config.yamlfile import saved_settings

PATHS = (
    "data.path",
    "data.validation_path",
    "model.name_or_path",
    "model.chat_template",
    "benchmark.include_path",
    "generate.file",
    "cache_dir",
)
# keys that name Python code, or a folder whose files may
CODE = ("data.formatter", "trainer.callbacks", "benchmark.include_path", "model.trust_remote_code", "model.extra")


def settled(composed: DictConfig, typed: Typed) -> Config:
    """The configuration of the run that `typed` asks for, its rules held. Raises ConfigError with every sentence."""
    config = plain = to_config(composed)
    make_absolute(config)
    if typed.from_run:
        config = start_from(Path(typed.from_run), config, typed)
    config = open_run(config, typed)
    root = Path(typed.from_run or str(config.run_dir))
    swept = [f.name for f in fields(SweepConf) if getattr(config.sweep, f.name) != getattr(SweepConf(), f.name)]
    if swept:  # a sweep reads it, and its jobs have none
        raise ConfigError(f"sweep.{swept[0]} has no effect on a single run: type hydratune -m, or leave it out.")
    return checked(config, typed, saved=root / "config.yaml" if config is not plain else None)


def make_absolute(config: Config) -> None:
    """A file or folder that is there is named so that it is the same one wherever the run is opened again."""
    for key in PATHS:
        named = value_of(config, key)
        ours = named == "demo" or (key == "model.chat_template" and not str(named).endswith(".jinja"))
        if named and not ours:
            put(config, key, _absolute(str(named)))
    for entry in [*config.data.mix, *config.benchmark.own_tasks.values()]:
        for key in ("path", "fewshot_path"):
            if isinstance(entry, dict) and isinstance(entry.get(key), str) and entry[key] != "demo":
                entry[key] = _absolute(entry[key])


def _absolute(named: str) -> str:
    """The path of what is there, or of the pattern in a folder that is; else as it was named."""
    path = Path(named).expanduser()
    fixed = Path(*takewhile(lambda part: not set(part) & set("*?["), path.parts))
    return str(path.absolute()) if fixed.exists() and (path.exists() or fixed != path) else named


def read_saved(root: Path) -> Config:
    """The configuration of the run in `root`, as plain data: nothing in it is resolved or imported."""
    path = root / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{root} holds no run: there is no {path}.")
    try:
        _, plain = parsed(path.read_text(encoding="utf-8"))
        config = to_config(plain) if isinstance(plain, dict) else None
        if config and not value_problems(config):
            return config
        why = "holds no settings"
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        why = f"can't be read: {' '.join(str(error).split())[:300]}"
    found = Sources()
    settings = saved_settings(path, found)
    wrong = [*found.problems, *((one.place, said) for one in settings if (said := setting_problem(one, [])))]
    raise ConfigError([f"{place}: {said}." for place, said in wrong] or f"{path} {why}.")


def start_from(root: Path, config: Config, typed: Typed) -> Config:
    """The saved configuration with what was typed put on it, for a new run. `config` is what `typed` composes to."""
    base = read_saved(root)
    for key in typed_keys(typed):
        if key in ("experiment", "sweep"):
            raise ConfigError(
                f"{key}= and --from are two beginnings: leave out one, or type the keys that {key}= was to set."
            )
        put(base, key, value_of(config, key))
    if not {"run_dir"} & set(typed_keys(typed)):
        base.run_dir = None
    if "stages" not in typed_keys(typed):
        base.stages = list(STAGES)
    check_code(base, config, root)
    _check_secrets(base, root)
    return base


def open_run(config: Config, typed: Typed) -> Config:
    """Settle `run_dir`; where it holds a run, that run's settings with `typed` applied to them.

    Raises ConfigError when an override contradicts what the run was trained with. Before training has begun, what
    was typed changes the settings.
    """
    if config.run_dir is None:
        config.run_dir = f"runs/{config.name}-{config_hash(config)}"
    root = Path(config.run_dir)
    if root.exists() and not root.is_dir():
        raise ConfigError(f"run_dir={config.run_dir} is a file: name a folder.")
    if not (root / "config.yaml").is_file():
        return config
    keys = typed_keys(typed)
    trained = has_trained(root)
    if not trained and {"experiment", "sweep"} & set(keys):
        return config
    saved = read_saved(root)
    check_code(saved, config, root)
    saved.run_dir, saved.trust = config.run_dir, config.trust
    saved.stages = config.stages if "stages" in keys else list(STAGES)
    wrong = []
    for key in keys:
        if key == "experiment":
            wrong += _differences(saved, config, [k for k in asdict(config) if k not in FREE])
            saved.merge, saved.benchmark, saved.generate = config.merge, config.benchmark, config.generate
        elif key.partition(".")[0] in FREE or not trained:
            put(saved, key, value_of(config, key))
        else:
            wrong += _differences(saved, config, [key])
    if wrong:
        raise ConfigError(
            [
                f"{line}: this run was trained with other settings; take another run_dir."
                for line in dict.fromkeys(wrong)
            ]
        )
    _fill_secrets(saved, config)
    return saved


def has_trained(root: Path) -> bool:
    """Whether training has begun in `root`: its settings are fixed from then on."""
    return any(root.glob("checkpoints/checkpoint-*")) or (root / "receipts" / "train.json").is_file()


def begun(root: Path, config: Config) -> bool:
    """Whether `root` holds a run of settings other than `config`'s."""
    return (root / "config.yaml").is_file() and config_hash(read_saved(root)) != config_hash(config)


def typed_keys(typed: Typed) -> list[str]:
    """Keys and groups of the overrides, without Hydra's own."""
    keys = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in typed.overrides]
    return [key for key in keys if not key.startswith(("hydra.", "hydra/"))]


def value_of(config: Config | dict[str, Any], key: str) -> Any:
    """The value, or the group of values, under a dotted key."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else getattr(node, part)
    return node


def put(config: Config, key: str, value: Any) -> None:
    """Set a dotted key."""
    holder, _, name = key.rpartition(".")
    node = value_of(config, holder) if holder else config
    if isinstance(node, dict):
        node[name] = value
    else:
        setattr(node, name, value)


def check_code(saved: Config, config: Config | None, root: Path) -> None:
    """Python that a saved file names is imported only where the command line or its files name it too, or trust it.

    `config` is what those say; None where they can't name it.
    """
    if config and config.trust:
        return
    same = "type the same {key}, or trust=true" if config else "type trust=true if it is yours"
    for key in CODE:
        named = value_of(saved, key)
        if named and named != "demo" and (not config or named != value_of(config, key)) and REDACTED not in str(named):
            raise ConfigError(
                f"{root}/config.yaml says {key}={named}, which can make hydratune run code of its choice: "
                f"{same.format(key=key)}."
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
        old, new = (_leaves(value_of(asdict(one), key), key) for one in (saved, typed))
        found += [
            f"{k} is {old.get(k)!r} in {typed.run_dir}/config.yaml and {new.get(k)!r} here"
            for k in {**old, **new}
            if old.get(k) != new.get(k) and REDACTED not in str(old.get(k))
        ]
    return found
