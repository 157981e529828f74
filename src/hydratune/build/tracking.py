"""conf/tracking -> the environment that transformers' own wandb callback reads."""

import importlib.util
import netrc
import os
import uuid
from pathlib import Path
from urllib.parse import urlparse

from hydratune.config.schema import ConfigError, TrackingConf


def check_tracking(conf: TrackingConf) -> None:
    """Raises ConfigError where the tracker isn't installed, or knows no account."""
    if conf.kind != "wandb":
        return
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("tracking=wandb needs the package wandb: pip install 'hydratune[wandb]', or tracking=off.")
    if conf.mode == "online" and not (os.environ.get("WANDB_API_KEY") or _logged_in()):
        raise ConfigError(
            "tracking=wandb needs an account: type wandb login, set WANDB_API_KEY, or choose tracking=wandb_offline."
        )


def _logged_in() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def set_up_tracking(conf: TrackingConf, run_root: Path) -> None:
    """Point wandb at the run directory, where it goes on with the same run; kind=off leaves the environment alone."""
    if conf.kind != "wandb":
        return
    known = run_root / "wandb_run_id"
    if not known.is_file():
        known.write_text(uuid.uuid4().hex[:8])
    os.environ.update(
        WANDB_PROJECT=conf.project, WANDB_MODE=conf.mode, WANDB_DIR=str(run_root), WANDB_RUN_ID=known.read_text(),
        WANDB_RESUME="allow",
    )  # fmt: skip


def finish_tracking(conf: TrackingConf) -> None:
    """Write out what the tracker still holds: at the end of training, and before a stop that saved its state."""
    if conf.kind == "wandb":
        import wandb

        wandb.finish()
