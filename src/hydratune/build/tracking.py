"""conf/tracking -> the environment that transformers' own wandb callback reads."""

import os
from pathlib import Path

from hydratune.config.schema import TrackingConf


def set_up_tracking(conf: TrackingConf, run_root: Path) -> None:
    """Point wandb at the run directory; kind=off leaves the environment alone."""
    if conf.kind == "wandb":
        os.environ.update(WANDB_PROJECT=conf.project, WANDB_MODE=conf.mode, WANDB_DIR=str(run_root))


def finish_tracking(conf: TrackingConf) -> None:
    """Write out what the tracker still holds: at the end of training, and before a stop that saved its state."""
    if conf.kind == "wandb":
        import wandb

        wandb.finish()
