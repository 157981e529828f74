"""Which launcher runs a plan, and with which settings: those of its option in conf/hydra/launcher."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from hydratune.config.schema import ConfigError
from hydratune.config.values import suggestion
from hydratune.sweep import here, slurm
from hydratune.sweep.here import Here
from hydratune.sweep.jobs import Plan
from hydratune.sweep.slurm import Slurm

KINDS: dict[str, type[Here] | type[Slurm]] = {"HereLauncher": Here, "SlurmLauncher": Slurm}


def settings_of(target: str, given: Mapping[str, Any]) -> Here | Slurm:
    """The launcher's settings, checked. Raises ConfigError."""
    kind = KINDS[target.rpartition(".")[2]]
    known = {f.name for f in fields(kind)}
    for key in given:
        if key not in known and not key.startswith("_"):
            cluster = ", and cluster= is for hydra/launcher=slurm_1gpu and its kin" if kind is Here else ""
            raise ConfigError(f"There is no hydra.launcher.{key}{suggestion(key, known)}{cluster}: leave it out.")
    plain: dict[str, Any] = {
        key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in given.items() if key in known
    }
    return kind(**plain)


def launch(plan: Plan, settings: Here | Slurm) -> list[JobReturn]:
    """What Hydra's sweepers get; of jobs that were only submitted, none."""
    if isinstance(settings, Here):
        return here.launch(plan, settings)
    return slurm.launch(plan, settings)
