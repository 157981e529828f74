"""What the stages need from the hub: where it was prefetched no library asks for it, else it must be in reach."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hydratune.build.source import is_on_hub
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, ConfigError
from hydratune.run.console import say

READING = {"prepare", "train", "evaluate"}  # stages that may read datasets of the hub


def settle_hub(jobs: Sequence[tuple[Config, list[str]]]) -> list[str]:
    """The sentences for what the jobs need of the hub and is neither here nor to be had.

    Where all that they need was prefetched, or the hub can't be reached, no library asks it for anything from here on.
    """
    if not any(is_on_hub(config.model) or READING & set(stages) for config, stages in jobs):
        return []
    from hydratune.build import pins

    pins.heed_flags()
    every = dict.fromkeys(need for config, stages in jobs for need in needs_of(config, stages))
    needs = [need for need in every if need.weights or replace(need, weights=True) not in every]
    if not needs:
        return []
    try:
        why = pins.why_offline(needs, cache_dir(jobs[0][0]))
    except ConfigError as error:
        pins.go_offline()  # the other checks would wait for it, again and again
        return error.sentences
    if why:
        kept = pins.go_offline()
        say(why + (f"; {' and '.join(kept)} of yours stays" if kept else ""))
    return []


def is_of_hub(sentence: str) -> bool:
    """Whether a check says, in its own way, that something of the hub can't be had."""
    from hydratune.build.hub import MISSING

    return MISSING in sentence


def as_prefetched(config: Config) -> Config:
    """The configuration for loading: at the commits that were prefetched. What is saved is the one as it was typed."""
    if not _has_prefetched(config):
        return config
    from hydratune.build.pins import pinned

    return pinned(config, cache_dir(config))


def _has_prefetched(config: Config) -> bool:
    return (cache_dir(config) / "prefetched").is_dir()


def needs_of(config: Config, stages: Sequence[str]) -> list[Any]:
    """The models and datasets of the hub that these stages load, each once."""
    from hydratune.build.needs import data_needs, model_need, task_needs

    answering = {"evaluate": config.benchmark.models, "generate": config.generate.models}
    # the merged model has all that it needs in its own folder; prepare reads the base's tokenizer alone
    reading = [stage for stage in stages if set(answering.get(stage, [])) != {"merged"}]
    model = model_need(config.model, weights=reading != ["prepare"]) if reading else None
    found: list[Any] = [model] if model else []
    if "prepare" in stages or "train" in stages:
        found += data_needs(config.data)
    if "evaluate" in stages:
        # of any kind, where a name or a file is wrong: check_tasks, which comes next, goes the same way and says it
        with suppress(Exception):
            found += task_needs(config.benchmark, cache_dir(config))
    return list(dict.fromkeys(found))
