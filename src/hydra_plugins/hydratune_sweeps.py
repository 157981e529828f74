"""hydratune's sweeper and launcher for Hydra, which imports this module whenever any Hydra application starts."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(Sweeper):
    """Every combination of the values given. Unlike Hydra's own, writes nothing before all jobs are checked."""

    def __init__(self, params: dict[str, str] | None = None, **unknown: Any) -> None:
        self.params, self.unknown = params or {}, unknown

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Part of Hydra's interface."""
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Launch all jobs as one batch. Exits with 3 where one of them failed."""
        import sys

        from hydra.core.utils import JobStatus
        from omegaconf import OmegaConf

        from hydratune.config.schema import ConfigError
        from hydratune.sweep.grid import grid
        from hydratune.sweep.search import FAILED

        assert self.hydra_context and self.launcher and self.config is not None
        for key in self.unknown:
            raise ConfigError(f"hydra/sweeper=grid has no {key}: leave hydra.sweeper.{key} out.")
        overrides = [f"{k}={'null' if v is None else v}" for k, v in self.params.items()] + arguments
        asked, first = self.config.sweep, self.config.seed
        zipped: Any = OmegaConf.to_container(asked.zip, resolve=True)
        seeds = list(range(first, first + asked.seeds)) if asked.seeds else []
        returned = self.launcher.launch(grid(self.hydra_context.config_loader, overrides, zipped, seeds), 0)
        if any(job.status == JobStatus.FAILED for job in returned):
            sys.exit(FAILED)
        return returned


class _Launcher(Launcher):
    """What its own and Slurm's have in common."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings  # as the launcher's option in conf/hydra/launcher has them

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Part of Hydra's interface."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check every job, then start the first. Jobs are known by their settings: the index is not looked at."""
        from hydratune.sweep.jobs import planned
        from hydratune.sweep.launching import launch, settings_of
        from hydratune.sweep.search import failed, note

        # before anything is composed: what is wrong with them is told at once
        settings = settings_of(f"{type(self).__module__}.{type(self).__name__}", self.settings)
        plan = planned(self.hydra_context.config_loader, self.config, job_overrides)
        returned = launch(plan, settings, failures=len(failed - {str(job.root) for job in plan.jobs}))
        if not str(self.config.hydra.sweeper.get("_target_")).endswith(f".{GridSweeper.__name__}"):
            note(returned, self.settings.get("max_failures"))
        return returned


class HereLauncher(_Launcher):
    """This machine: one process a job, so that all memory comes back, N at a time."""


class SlurmLauncher(_Launcher):
    """Slurm: a task of an array a job, submitted and left."""
