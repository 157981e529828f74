"""Every failure that can be found without weights, all listed at once."""

import inspect
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, reduce
from pathlib import Path
from typing import Any

from hydratune.config.load import cache_dir
from hydratune.config.schema import STAGES, Config, ConfigError, MachineError, ModelConf
from hydratune.preflight_data import check_data, check_own_tasks, check_rendered
from hydratune.preflight_hub import as_prefetched, is_of_hub, settle_hub
from hydratune.preflight_options import check_generation, check_options
from hydratune.run import login_node

# what decides which modules an adapter gets, whatever its rank
ADAPTED = (
    "lora.kind", "lora.bias", "lora.use_dora", "lora.init_lora_weights", "lora.target_modules", "lora.modules_to_save",
    "lora.layers_to_transform", "lora.trainable_token_indices", "lora.rank_pattern", "lora.alpha_pattern", "lora.extra",
)  # fmt: skip


def check(config: Config, stages: list[str]) -> None:
    """Check what `stages`, those that will really run, need. Raises ConfigError with every sentence."""
    found = check_jobs([(config, stages)])[0]
    if found:
        raise ConfigError(found)


def check_jobs(jobs: Sequence[tuple[Config, list[str]]], elsewhere: bool = False) -> list[list[str]]:
    """The sentences of each job, of which jobs with the same settings share the work.

    Jobs that will run `elsewhere` are not refused for what this machine is or lacks.
    """
    here = [[] if elsewhere or not config.stages else stages for config, stages in jobs]  # stages=[] only checks
    if any(refused := [login_node.refusal(stages) for stages in here]):
        return refused
    import_for(jobs)
    missing = settle_hub(jobs)
    answers: dict[str, list[str]] = {}

    def ask(step: Callable[[Config], None], config: Config, reads: tuple[str, ...]) -> list[str]:
        plain = asdict(config)
        key = json.dumps([step.__name__, *(reduce(dict.__getitem__, name.split("."), plain) for name in reads)])
        if key not in answers:
            try:
                answers[key] = []
                step(config)
            except ConfigError as error:
                answers[key] = error.elsewhere if elsewhere and isinstance(error, MachineError) else error.sentences
        return answers[key]

    found = []
    with warnings.catch_warnings():  # nothing is written yet, so there is no log that would take them
        warnings.simplefilter("ignore")
        for config, stages in [(as_prefetched(config), stages) for config, stages in jobs]:
            said = [
                sentence
                for step, reads, needed_by in STEPS
                if set(stages) & set(needed_by)
                for sentence in ask(step, config, reads)
                if not (missing and is_of_hub(sentence))
            ]
            found.append(list(dict.fromkeys([*said, *missing])))
    return found


def import_for(jobs: Sequence[tuple[Config, list[str]]]) -> None:
    """The libraries that the stages of these jobs need."""
    for library in ("bitsandbytes", "transformers", "lm_eval", "lm-eval"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if any(stages for _, stages in jobs):
        from hydratune.build.libraries import import_libraries

        training = any("train" in stages for _, stages in jobs)
        evaluation = any("evaluate" in stages for _, stages in jobs)
        import_libraries(training, any(config.tracking.kind == "wandb" for config, _ in jobs), evaluation)


def _hardware(config: Config) -> None:
    from hydratune.build.hardware import resolve

    resolve(config)


def _model(config: Config) -> None:
    """The model's configuration and tokenizer."""
    from hydratune.build.model import load_tokenizer
    from hydratune.build.source import locate

    source, gguf = locate(config.model, cache_dir(config))
    _settings(json.dumps(asdict(config.model)), str(cache_dir(config)))
    load_tokenizer(config.model, source, **gguf)


def _evaluated(config: Config) -> None:
    _answering(config, config.benchmark.models)


def _asked(config: Config) -> None:
    _answering(config, config.generate.models)


def _answering(config: Config, models: list[str]) -> None:
    """What `models` need of the base: nothing where the merged model answers alone, and has its tokenizer."""
    merged = Path(config.run_dir or "") / "merged" / "tokenizer_config.json"
    if set(models) != {"merged"} or not merged.is_file():
        _model(config)


def _packed(config: Config) -> None:
    """That the model can tell packed rows by their positions, as far as its signature shows; train proves the rest."""
    if not (config.data.packing or config.data.padding_free):
        return
    try:
        model = _skeleton(json.dumps(asdict(config.model)), str(cache_dir(config)))
    except ConfigError:
        return  # said by _model
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            f"{type(model).__name__} knows no position_ids, so packed rows would see one another: set data.packing=false "
            "and data.padding_free=false."
        )


@cache
def _settings(model: str, cache_root: str) -> Any:
    """transformers' configuration of the model, conf/model as JSON. Raises ConfigError where there is none."""
    from transformers import AutoConfig

    from hydratune.build.source import locate, not_loaded

    conf = ModelConf(**json.loads(model))
    source, gguf = locate(conf, Path(cache_root))
    try:
        return AutoConfig.from_pretrained(
            source,
            revision=conf.revision,
            trust_remote_code=conf.trust_remote_code,
            token=conf.extra.get("token"),
            **gguf,
        )
    except (OSError, ValueError) as error:
        raise not_loaded("model", source, error) from None


@cache
def _skeleton(model: str, cache_root: str) -> Any:
    """The model without weights, on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    remote = ModelConf(**json.loads(model)).trust_remote_code
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(_settings(model, cache_root), trust_remote_code=remote)


def _adapter(config: Config) -> None:
    from hydratune.preflight_adapter import check_adapter

    try:
        model = _skeleton(json.dumps(asdict(config.model)), str(cache_dir(config)))
    except ConfigError:
        return  # said by _model
    check_adapter(config, model)


def _sockets(config: Config) -> None:
    from hydratune.build.trainer import load_callbacks

    load_callbacks(config.trainer)


def _tracking(config: Config) -> None:
    from hydratune.build.tracking import check_tracking

    check_tracking(config.tracking)


def _prompts(config: Config) -> None:
    from hydratune.build.prompts import read_prompts

    read_prompts(config.generate)


def _tasks(config: Config) -> None:
    from hydratune.preflight_tasks import check_tasks

    check_tasks(config)


# each step, the groups or keys that its answer depends on, and the stages that need it
STEPS: tuple[tuple[Callable[[Config], None], tuple[str, ...], tuple[str, ...]], ...] = (
    (_hardware, ("model", "quantization", "lora", "trainer"), STAGES),
    (check_data, ("data",), ("prepare",)),
    (_model, ("model",), ("prepare", "train")),
    (check_rendered, ("model", "data", "trainer.max_length"), ("prepare",)),
    (_packed, ("model", "data.packing", "data.padding_free"), ("train",)),
    (_adapter, ("model", "quantization", "merge.method", "stages", *ADAPTED), ("train",)),
    (check_options, ("model", "quantization", "lora", "trainer"), ("train",)),
    (_sockets, ("trainer",), ("train",)),
    (_tracking, ("tracking",), ("train",)),
    (_tasks, ("benchmark", "objective"), ("evaluate",)),
    # a job's own merged model has the tokenizer of the others'
    (_evaluated, ("model", "benchmark.models"), ("evaluate",)),
    (check_own_tasks, ("benchmark", "model"), ("evaluate",)),
    (check_generation, ("benchmark.gen_kwargs",), ("evaluate",)),
    (_asked, ("model", "generate.models", "run_dir"), ("generate",)),
    (_prompts, ("generate",), ("generate",)),
)
