"""Settings of Hydra's own: what Hydra refuses, takes although nothing reads it, or would write folders for."""

import re
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from hydratune.config.cluster import launcher_problem, more_for_sbatch, needs_slurm
from hydratune.config.load import CONF_DIR
from hydratune.config.schema import ConfigError
from hydratune.config.settings import SWEPT, Setting, Sources, config_loader
from hydratune.config.typed import Typed
from hydratune.config.values import suggestion, unknown_key

# settings with which Hydra would make folders before anything is checked -> what they have to be
HYDRA_OURS = {"hydra.run.dir": ".", "hydra.output_subdir": None}
HYDRA_WRITES = (
    "Hydra would write folders of its own before anything is checked: "
    "write hydra: {run: {dir: .}, output_subdir: null} into the file"
)
# of Hydra's own settings, those that a run or a sweep of ours reads; the rest would do nothing, write, or import code
ALLOWED = ("hydra.mode", "hydra.sweep.dir", "hydra.verbose", "hydra.job.name")
ALLOWED_BELOW = ("hydra.sweeper.", "hydra.launcher.", "hydra.help.")
ALLOWED_GROUPS = ("hydra/launcher", "hydra/sweeper")
IMPORTS = ("_target_", "_partial_", "_args_", "class", "()")  # names whose value Hydra or logging would import


def hydra_problems(typed: Typed, found: Sources) -> list[tuple[str, str]]:
    """What is wrong with settings of Hydra's own, in files of the user's and as typed."""
    wrong = [] if "cluster" in found.spoilt else needs_slurm(typed)
    without = bool(wrong)  # a launcher: nothing more is to be said of its settings
    for setting in found.settings:
        key = setting.key.lstrip("+~")
        ours = Path(setting.place.rpartition(":")[0]).absolute().is_relative_to(CONF_DIR)
        if (key != "hydra" and not key.startswith("hydra.")) or (ours and setting.place not in typed.overrides):
            continue
        if without and setting.chosen.startswith("cluster="):
            continue
        said = _hydra_problem(typed, key, setting, found.spoilt)
        if said:
            wrong.append((setting.place, said))
    for text in typed.overrides:
        group, _, option = text.lstrip("+").partition("=")
        if group.startswith("hydra/") and (group not in ALLOWED_GROUPS or option == "basic"):
            wrong.append((text, f"{group}={option} would bypass hydratune's own: leave it out"))
    return wrong


def _hydra_problem(typed: Typed, key: str, setting: Setting, spoilt: set[str]) -> str | None:
    if key == "hydra":
        return f"hydra is a group of Hydra's own settings, found {setting.value!r:.60}"
    if key in HYDRA_OURS:
        if setting.value == HYDRA_OURS[key]:
            return None
        return f"{key} has no use: the files of a run lie in run_dir, set run_dir=DIR"
    # a file's parameter has one name with dots in it, and is looked at as the key that it sets
    parts = [key.removeprefix(SWEPT)] if setting.form == "file" and key.startswith(SWEPT) else key.split(".")
    if _names(setting.value, IMPORTS) or set(parts) & set(IMPORTS):
        return f"{key} would import Python code, which only data.formatter and trainer.callbacks may: leave it out"
    if key.startswith("hydra.searchpath"):
        return "hydra.searchpath has no use: name your folder with --config-dir DIR"
    if key not in ALLOWED and not key.startswith(ALLOWED_BELOW):
        return f"there is no key {key}{suggestion(key, ALLOWED)} that hydratune reads: leave it out"
    if setting.place not in typed.overrides:
        return _in_a_file(typed, key, setting.value)
    try:
        mode = RunMode.MULTIRUN if typed.multirun else RunMode.RUN
        chosen = [
            f"{group}={option}"
            for group, option in typed.chosen((*ALLOWED_GROUPS, "cluster")).items()
            if group not in spoilt
        ]
        config_loader(typed.config_dir).load_configuration(typed.config_name, [*chosen, setting.place], mode)
    except (HydraException, OmegaConfBaseException) as error:
        said = in_one_line(error)
        return (
            f"there is no key {key}{more_for_sbatch(typed, setting)}" if said.startswith("Could not override") else said
        )
    return None


def _in_a_file(typed: Typed, key: str, value: Any) -> str | None:
    name = key.removeprefix("hydra.")
    if name.startswith("sweeper.") and name.split(".")[1] != "params" and not typed.searches:
        return f"there is no key {key}{suggestion(key, ['hydra.sweeper.params'])}"
    if name.startswith("launcher."):
        return launcher_problem(typed, key, value)
    if name.startswith("sweeper."):
        return None  # as its option has it
    try:
        OmegaConf.update(OmegaConf.structured(HydraConf), name, value)
    except OmegaConfBaseException as error:
        return f"{key}: {in_one_line(error)}"
    return None


def _names(value: Any, names: tuple[str, ...]) -> bool:
    """Whether one of `names` is a key anywhere in `value`."""
    if isinstance(value, dict):
        return any(key in names or _names(inner, names) for key, inner in value.items())
    return isinstance(value, list) and any(_names(inner, names) for inner in value)


def in_one_line(error: BaseException) -> str:
    """A library's message without line breaks, and without the closing full stop; our own, where one caused it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigError):
            return " ".join(cause.sentences).rstrip(".")
        cause = cause.__cause__
    if isinstance(error, InterpolationKeyError) and (key := re.search(r"key '(.+)' not found", str(error))):
        return f"${{{key[1]}}}: {unknown_key(key[1])}"
    said = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines()]
    kept = [line for line in said if line and not re.match(r"(full_key|object_type|reference_type)\b", line)]
    return re.sub(r"^ConfigError raised while resolving interpolation: ", "", " ".join(kept)).rstrip(".")
