"""Every failure that can be found without weights, all listed at once."""

import dataclasses
import inspect
import logging
import re
import warnings
from pathlib import Path
from typing import Any

from hydratune.config.load import cache_dir
from hydratune.config.rules import suggestion
from hydratune.config.schema import Config, ConfigError


def check(config: Config, stages: list[str]) -> None:
    """Check what `stages`, those that will really run, need. Raises ConfigError with every sentence."""
    if not stages:
        return
    for library in ("bitsandbytes", "transformers", "lm_eval", "lm-eval"):
        logging.getLogger(library).setLevel(logging.ERROR)
    found: list[str] = []
    with warnings.catch_warnings():  # nothing is written yet, so there is no log that would take them
        warnings.simplefilter("ignore")
        for step in (_hardware, _data, _model, _options, _tasks):
            try:
                step(config, stages)
            except ConfigError as error:
                found += error.sentences
    if found:
        raise ConfigError(list(dict.fromkeys(found)))


def _hardware(config: Config, stages: list[str]) -> None:
    from hydratune.build.hardware import resolve

    resolve(config)


def _data(config: Config, stages: list[str]) -> None:
    if "prepare" in stages:
        from hydratune.build.data import read_rows

        read_rows(config.data)


def _model(config: Config, stages: list[str]) -> None:
    """The model's configuration and tokenizer, and that every LoRA target is one of its modules."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from hydratune.build.model import load_tokenizer, locate, not_loaded

    source, gguf = locate(config.model, cache_dir(config))
    remote = config.model.trust_remote_code
    try:
        settings: Any = AutoConfig.from_pretrained(
            source, revision=config.model.revision, trust_remote_code=remote, **gguf
        )
    except (OSError, ValueError) as error:
        raise not_loaded("model", source, error) from None
    wrong = []
    try:
        load_tokenizer(config.model, source, **gguf)
    except ConfigError as error:
        wrong += error.sentences
    targets = config.lora.target_modules
    if config.lora.kind != "none" and not isinstance(targets, str):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, trust_remote_code=remote)
        names = [name for name, _ in model.named_modules()]
        linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        real = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
        wrong += [
            f"lora.target_modules names {target!r}, which matches no module of the model: it has {', '.join(real)}."
            for target in targets
            if not any(name == target or name.endswith(f".{target}") for name in names)
        ]
    if wrong:
        raise ConfigError(wrong)


def _options(config: Config, stages: list[str]) -> None:
    """Names in `extra` against the installed libraries' own, and values against the libraries' own checks."""
    if "train" not in stages:
        return
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import SFTConfig

    from hydratune.build.hardware import resolve
    from hydratune.build.lora import build_lora
    from hydratune.build.trainer import build_trainer_args

    # from_pretrained names most of its options only where it takes them from its keyword arguments
    taken = re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(PreTrainedModel.from_pretrained))
    known = {
        "trainer": [f.name for f in dataclasses.fields(SFTConfig)],
        "lora": list(inspect.signature(LoraConfig).parameters),
        "model": [*inspect.signature(PreTrainedModel.from_pretrained).parameters, *taken],
    }
    wrong = [
        f"{group}.extra.{key} is not an option of the installed library{suggestion(key, names)}."
        for group, names in known.items()
        for key in getattr(config, group).extra
        if key not in names
    ]
    if wrong:
        raise ConfigError(wrong)
    try:
        build_lora(config.lora)
    except (TypeError, ValueError) as error:
        wrong.append(f"peft refuses the lora group: {error}")
    try:
        build_trainer_args(config, resolve(config), Path("."))
    except (TypeError, ValueError) as error:
        wrong.append(f"trl refuses the trainer group: {error}")
    if wrong:
        raise ConfigError(wrong)


def _tasks(config: Config, stages: list[str]) -> None:
    if "evaluate" not in stages:
        return
    from hydratune.build.benchmark import build_tasks

    names = build_tasks(config.benchmark).all_tasks
    wrong = [
        f"benchmark.tasks names {task!r}, which lm-eval does not know{suggestion(task, names)}."
        for task in config.benchmark.tasks
        if task not in names
    ]
    if wrong:
        raise ConfigError(wrong)
