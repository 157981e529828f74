"""The one entrypoint: compose, check, run the stages."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.load import CONF_DIR, keys, open_run, to_config
from hydratune.config.rules import broken_rules, suggestion
from hydratune.config.schema import ConfigError, RunError
from hydratune.run.signals import handled, stop


@hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
def _app(composed: DictConfig) -> float | None:
    with _plain_errors():
        from hydratune import pipeline, preflight  # late: --help and --cfg need neither

        typed = list(HydraConfig.get().overrides.task)
        config = open_run(to_config(composed), typed)
        broken = broken_rules(config)
        if broken:
            raise ConfigError(broken)
        pipeline.check_inputs(config)
        with handled(stop):
            preflight.check(config, pipeline.unfinished(config))
            return pipeline.run(config, typed)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Exit status 2 and a sentence for the user's mistake, 1 for a failed run; a crash keeps its traceback."""
    try:
        yield
    except ConfigError as error:
        _stop(2, *error.sentences)
    except (HydraException, OmegaConfBaseException) as error:
        _stop(2, _reworded(f"{error} {error.__cause__ or ''}"))
    except RunError as error:
        _stop(1, str(error))


def _stop(status: int, *sentences: str) -> None:
    print("\n".join(f"hydratune: {sentence}" for sentence in sentences), file=sys.stderr)
    sys.exit(status)


def _reworded(said: str) -> str:
    """Hydra's own words on one line; for a key that isn't there, the nearest one instead of its '+' advice."""
    unknown = re.search(r"Could not override '([^']+)'", said) or re.search(r"full_key: (\S+)", said)
    if unknown and ("Could not override" in said or "not in" in said):
        return f"There is no key {unknown[1]}{suggestion(unknown[1], keys())}."
    return " ".join(line.strip() for line in said.splitlines() if line.strip())


def main() -> None:
    """Exit status: 0 done, 1 a crash or a failed run, 2 the user's mistake."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and we choose the words
    try:
        with _plain_errors():
            _app()
    except BrokenPipeError:  # hydratune --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
