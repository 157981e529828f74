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

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Part of Hydra's interface."""
        from hydra.core.plugins import Plugins

        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Launch all jobs as one batch."""
        from hydratune.sweep import grid

        assert self.hydra_context and self.launcher
        overrides = [f"{k}={'null' if v is None else v}" for k, v in self.params.items()] + arguments
        return self.launcher.launch(grid(self.hydra_context.config_loader, overrides), initial_job_idx=0)


class HereLauncher(Launcher):
    """This machine: one process a job, so that all memory comes back, one after another."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Part of Hydra's interface."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check every job, then start the first."""
        from hydratune import sweep

        jobs: Any = sweep.checked_jobs(self.hydra_context.config_loader, self.config, job_overrides, initial_job_idx)
        return sweep.run_here(jobs)
