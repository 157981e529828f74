"""Settings of Hydra's own: what Hydra refuses, takes although nothing reads it, or would write folders for."""

import re
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException, ValidationError

from hydratune.config.load import CONF_DIR
from hydratune.config.schema import ConfigError
from hydratune.config.settings import Sources, config_loader
from hydratune.config.typed import Typed
from hydratune.config.values import suggestion, unknown_key

# mappings of Hydra's own configuration that take any key
HYDRA_OPEN = ("hydra.sweeper.params", "hydra.job.env_set", "hydra.callbacks")

# settings with which Hydra would make folders before anything is checked -> what they have to be
HYDRA_OURS = {"hydra.run.dir": ".", "hydra.output_subdir": None}
HYDRA_WRITES = (
    "Hydra would write folders of its own before anything is checked: "
    "write hydra: {run: {dir: .}, output_subdir: null} into the file"
)


def hydra_problems(typed: Typed, found: Sources) -> list[tuple[str, str]]:
    """Overrides of Hydra's own settings that Hydra refuses, or takes although nothing reads them."""
    wrong = []
    for setting in found.settings:
        key = setting.key.lstrip("+~")
        if key == "hydra":
            wrong.append((setting.place, f"hydra is a group of Hydra's own settings, found {setting.value!r:.60}"))
        if not key.startswith("hydra."):
            continue
        if key in HYDRA_OURS and setting.value != HYDRA_OURS[key]:
            wrong.append((setting.place, f"{key} has no use: the files of a run lie in run_dir, set run_dir=DIR"))
            continue
        if setting.key != key and not key.startswith(HYDRA_OPEN):
            wrong.append((setting.place, f"there is no key {key}; type hydratune --hydra-help for Hydra's own"))
            continue
        if setting.place not in typed.overrides:
            ours = Path(setting.place.rpartition(":")[0]).absolute().is_relative_to(CONF_DIR)
            if not ours and (said := _hydra_problem(key, setting.value)):
                wrong.append((setting.place, said))
            continue
        try:
            mode = RunMode.MULTIRUN if typed.multirun else RunMode.RUN
            config_loader(typed.config_dir).load_configuration(typed.config_name, [setting.place], mode)
        except (HydraException, OmegaConfBaseException) as error:
            said = in_one_line(error)
            missing = f"there is no key {key}; type hydratune --hydra-help for Hydra's own"
            wrong.append((setting.place, missing if said.startswith("Could not override") else said))
    return wrong


def _hydra_problem(key: str, value: Any) -> str | None:
    """What is wrong with a setting of Hydra's own in a file."""
    name = key.removeprefix("hydra.")
    if name.startswith("sweeper.") and name.split(".")[1] not in ("params", "_target_", "max_batch_size"):
        return f"there is no key {key}{suggestion(key, ['hydra.sweeper.params'])}"
    if name.partition(".")[0] in ("sweeper", "launcher", "hydra_logging", "job_logging", "callbacks", "help"):
        return None  # as its option has it
    own = OmegaConf.structured(HydraConf)
    try:
        OmegaConf.update(own, name, value, force_add=key.startswith(HYDRA_OPEN))
    except OmegaConfBaseException as error:
        if isinstance(error, ValidationError):
            return f"{key}: {in_one_line(error)}"
        return f"there is no key {key}; type hydratune --hydra-help for Hydra's own"
    return None


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
