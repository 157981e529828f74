"""A search: another sweeper of Hydra's has batch after batch of jobs done, each chosen by what those before have found."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.schema import ConfigError, RunError

FAILED = 3  # exit status of a sweep with failed jobs
failed: set[str] = set()  # the folders of the jobs that did, of all batches


class JobFailed(RunError):
    """What a sweeper gets that asks for the objective of a job that failed."""


def note(returned: Sequence[JobReturn], max_failures: int | None) -> None:
    """Of a batch that has ended, which jobs failed. Exits with 3 after `max_failures`."""
    failed.difference_update(str(job.working_dir) for job in returned)  # a search may choose the same again
    failed.update(str(job.working_dir) for job in returned if job.status == JobStatus.FAILED)
    if max_failures is not None and len(failed) >= max_failures:
        _end(f"and no other begins (hydra.launcher.max_failures={max_failures}).")


@contextmanager
def failures_told() -> Iterator[None]:
    """Where jobs of a search failed, exit with 3 at its end, and with a sentence where its sweeper gives up."""
    failed.clear()  # a job may be a fork of the sweep's process
    try:
        yield
    except JobFailed as error:
        _end(f"and its sweeper stopped: {str(error).rstrip('.')}.")
    except (ConfigError, RunError, HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        if not failed:
            raise
        _end(f"and its sweeper stopped: {type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}.")
    if failed:
        _end("whose values its sweeper went without.")


def _end(said: str) -> NoReturn:
    print(f"hydratune: {len(failed)} job{'s' * (len(failed) > 1)} of the search failed, {said}", file=sys.stderr)
    sys.exit(FAILED)
