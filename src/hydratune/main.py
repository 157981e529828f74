"""The one entrypoint: compose, check, run the stages."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.diagnose import diagnose, looks_wrong, refuse_mistakes
from hydratune.config.hydras_own import in_one_line
from hydratune.config.load import CONF_DIR
from hydratune.config.saved import settled
from hydratune.config.schema import Config, ConfigError, RunError
from hydratune.config.secrets import redacted_override
from hydratune.config.typed import Typed, split_arguments
from hydratune.run.ranks import Ranks, leading, take_ranks, together
from hydratune.sweep.search import failures_told


def main() -> None:
    """Exit status: 0 done, 1 a crash or a failed run, 2 the user's mistake, 3 a sweep with failed jobs, 75 saved."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and we choose the words
    try:
        with _plain_errors():
            me = take_ranks()
            if me.rank:
                from hydratune.follow import follow

                follow(me)
        with leading(me), _plain_errors():
            _command(sys.argv[1:], me)
    except KeyboardInterrupt:  # before a run has begun, and has taken the signals over
        sys.exit(130)
    except BrokenPipeError:  # hydratune --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)


def _command(arguments: list[str], me: Ranks) -> None:
    if arguments == ["--version"]:
        return print(f"hydratune {version('hydratune')}")
    typed = split_arguments(arguments)
    if {"-h", "--help"} & set(typed.rest):
        from hydratune.config.help import show_help

        return show_help(typed.config_dir)
    if typed.completes and any(word.startswith("query=") for word in typed.overrides):
        from hydratune.config.completion import print_completions

        return print_completions()
    with _plain_errors(typed):
        if typed.compared is not None:
            from hydratune.compare import show

            return show(typed.compared)
        if typed.sweep is not None:
            from hydratune.sweep.commands import run

            return run(typed.sweep)
        _refuse_combinations(typed, me)
        if typed.asked is not None:
            from hydratune.config.explain import explain

            return explain(typed)
        if not typed.completes and looks_wrong(typed):
            refuse_mistakes(typed)
        sys.argv[1:] = typed.rest
        with failures_told():
            hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(
                lambda c: _run(c, typed, me)
            )()


def _refuse_combinations(typed: Typed, me: Ranks) -> None:
    if typed.prefetches and (typed.multirun or any(word.startswith("sweep=") for word in typed.overrides)):
        raise ConfigError(
            "hydratune prefetch takes one run's settings: leave -m and sweep= out, and type those of a job."
        )
    if typed.multirun and me.world_size > 1:
        raise ConfigError(
            f"A sweep's jobs are processes of their own, and {me.world_size} were started: type it without torchrun or srun."
        )
    if typed.from_run and (typed.multirun or any(word.startswith("sweep=") for word in typed.overrides)):
        raise ConfigError(
            "--from begins one run, and a sweep many: leave it out, and choose the settings by experiment=X."
        )
    if typed.from_run and {"--cfg", "-c"} & set(typed.rest):
        raise ConfigError(
            f"--cfg shows what is composed, without a saved run: type hydratune explain KEY --from {typed.from_run}."
        )
    for word in typed.rest:
        if word.startswith(("--experimental-rerun", "--resolve")) and not {"--cfg", "-c"} & set(typed.rest):
            raise ConfigError(f"{word} has no use here: leave it out.")


def _run(composed: DictConfig, typed: Typed, me: Ranks) -> float | None:
    """One run. Returns its objective, for Hydra's sweepers."""
    with _plain_errors(typed):  # here, so that Hydra adds no words of its own
        from hydratune import pipeline, preflight  # late: --help and --cfg need neither
        from hydratune.follow import check_ranks
        from hydratune.run.job import recorded
        from hydratune.run.layout import RunDir
        from hydratune.run.signals import handled, stop

        config = settled(composed, typed)
        if typed.rows is not None:
            preflight.check(config, ["prepare"])
            _show_rows(config, typed.rows)
            return None
        if typed.prefetches:
            from hydratune.prefetch import prefetch

            prefetch(config)
            return None
        pipeline.check_inputs(config)
        stages = pipeline.unfinished(config)
        check_ranks(config, stages, me)
        sys.argv[1:] = [redacted_override(word) for word in sys.argv[1:]]  # which a tracker records
        try:
            with recorded(RunDir(Path(str(config.run_dir)))) as outcome, handled(stop):
                if me.world_size > 1:
                    together(me)  # whom the checks must know of
                preflight.check(config, stages)
                outcome.objective = pipeline.run(config, typed.overrides, me)
                return outcome.objective.value if outcome.objective else None
        except (ConfigError, RunError):
            raise
        except Exception:  # a crash: Hydra would print the overrides with it, and secrets among them
            traceback.print_exc()
            sys.exit(1)


def _show_rows(config: Config, numbers: list[int]) -> None:
    from hydratune.preflight_hub import as_prefetched
    from hydratune.run.console import quiet
    from hydratune.stages.data import show

    with quiet(Path(os.devnull)):
        show(as_prefetched(config), numbers)


@contextmanager
def _plain_errors(typed: Typed | None = None) -> Iterator[None]:
    """Exit status 2 and a sentence for the user's mistake, 1 for a failed run; a crash keeps its traceback."""
    try:
        yield
    except ConfigError as error:
        _stop(2, *error.sentences)
    except RunError as error:
        _stop(1, str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _stop(2, *((typed and diagnose(typed)) or [f"{in_one_line(error)}."]))


def _stop(status: int, *sentences: str) -> None:
    print("\n".join(f"hydratune: {sentence}" for sentence in sentences), file=sys.stderr)
    sys.exit(status)
