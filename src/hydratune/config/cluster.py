"""`cluster=NAME`, one site's settings of Slurm in a file of the user's; and what a launcher says of its settings in any."""

from functools import cache
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.schema import ConfigError
from hydratune.config.settings import Setting, config_loader, locate
from hydratune.config.typed import Typed
from hydratune.config.values import suggestion

PACKAGE = "hydra.launcher"
WORDS = {dict: "a mapping", list: "a list", bool: "true or false", int: "a whole number"}


def needs_slurm(typed: Typed) -> list[tuple[str, str]]:
    """That a cluster was typed, and no launcher that would read it; or several."""
    name = typed.chosen(["cluster"]).get("cluster", "null")
    if {",", "("} & set(name):
        return [(f"cluster={name}", "all jobs of a sweep are submitted alike: name one cluster")]
    if name == "null" or "sbatch" in _option(typed):
        return []
    return [
        (f"cluster={name}", "only Slurm's launchers read it: type hydra/launcher=slurm_1gpu with it, or leave it out")
    ]


def launcher_problem(typed: Typed, key: str, value: Any) -> str | None:
    """What is wrong with a setting of the launcher in a file, as the chosen launcher's option and its code have it."""
    from hydratune.sweep.launching import settings_of  # late: only who sets something here waits for it

    option = _option(typed)
    if not option or (isinstance(value, str) and "${" in value):
        return None  # a launcher of others; an interpolation
    name, _, inner = key.removeprefix(f"{PACKAGE}.").partition(".")
    given = {inner: value} if inner else value
    kind = type(option.get(name))
    if kind in WORDS and (not isinstance(given, kind) or (kind is int and isinstance(given, bool))):
        found = "a mapping" if isinstance(given, dict) else "null" if given is None else repr(given)
        return f"{PACKAGE}.{name} is {WORDS[kind]}, found {found}"
    try:
        settings_of(option["_target_"], {name: given})
    except ConfigError as error:
        said = error.sentences[0].rstrip(".")
        return said[0].lower() + said[1:]
    return None


def more_for_sbatch(typed: Typed, setting: Setting) -> str:
    """After the sentence that there is no such key: how an option of sbatch is typed that the launcher doesn't set."""
    name = setting.key.removeprefix(f"{PACKAGE}.sbatch.")
    if name == setting.key or "sbatch" not in (option := _option(typed)):
        return ""
    return f"{suggestion(name, option['sbatch'] or {})}: for another option of sbatch type +{setting.place}"


def _option(typed: Typed) -> dict[str, Any]:
    """The file of the launcher's option that is chosen; empty where it is none of ours."""
    loader = config_loader(typed.config_dir)
    name = typed.chosen(["hydra/launcher"]).get("hydra/launcher") or _roots(loader, typed.config_name)
    return _read(loader, name)


@cache
def _read(loader: ConfigLoader, name: str) -> dict[str, Any]:
    path = locate(loader, f"hydra/launcher/{name}")
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}


@cache
def _roots(loader: ConfigLoader, config_name: str) -> str:
    """The launcher that the root file chooses."""
    try:
        defaults = loader.compute_defaults_list(config_name, [], RunMode.RUN).defaults
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError):
        return "here"  # which is wrong for a reason that is said elsewhere
    paths = [default.config_path or "" for default in defaults]
    return next((path.rpartition("/")[2] for path in paths if path.startswith("hydra/launcher/")), "here")
