"""The one entrypoint: compose, check, run the stages."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.load import CONF_DIR, open_run, to_config
from hydratune.config.rules import broken_rules
from hydratune.config.schema import ConfigError, RunError


@hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
def _app(composed: DictConfig) -> float | None:
    from hydratune import pipeline, preflight  # late: --help and --cfg need neither

    typed = list(HydraConfig.get().overrides.task)
    config = open_run(to_config(composed), typed)
    broken = broken_rules(config)
    if broken:
        raise ConfigError(broken)
    preflight.check(config)
    return pipeline.run(config, typed)


def main() -> None:
    """Exit status: 0 done, 1 a crash or a failed run, 2 the user's mistake."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and we choose the words
    try:
        _app()
    except ConfigError as error:
        print("\n".join(f"hydratune: {sentence}" for sentence in error.sentences), file=sys.stderr)
        sys.exit(2)
    except (HydraException, OmegaConfBaseException) as error:
        said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        print(f"hydratune: {said}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"hydratune: {error}", file=sys.stderr)
        sys.exit(1)
