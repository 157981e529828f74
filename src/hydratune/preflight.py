"""Every failure that can be found without weights, all listed at once."""

import logging
from pathlib import Path
from typing import Any

from hydratune.config.load import cache_dir
from hydratune.config.rules import suggestion
from hydratune.config.schema import Config, ConfigError
from hydratune.run import receipt
from hydratune.run.layout import RunDir


def check(config: Config) -> None:
    """Raises ConfigError with every sentence. Skipped where all that was asked for is finished."""
    assert config.run_dir
    run_dir = RunDir(Path(config.run_dir))
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it names an optional package that no one needs here
    if all(receipt.read(run_dir, stage) for stage in config.stages):
        return
    found: list[str] = []
    for step in (_options, _hardware, _data, _model, _tasks):
        try:
            step(config)
        except ConfigError as error:
            found += error.sentences
    if found:
        raise ConfigError(found)


def _options(config: Config) -> None:
    import dataclasses
    import inspect

    from peft import LoraConfig
    from trl import SFTConfig

    known = {
        "trainer": [f.name for f in dataclasses.fields(SFTConfig)],
        "lora": list(inspect.signature(LoraConfig).parameters),
    }
    wrong = [
        f"{group}.extra.{key} is not an option of the installed library{suggestion(key, names)}."
        for group, names in known.items()
        for key in getattr(config, group).extra
        if key not in names
    ]
    if wrong:
        raise ConfigError(wrong)


def _hardware(config: Config) -> None:
    from hydratune.build.hardware import resolve

    resolve(config)


def _data(config: Config) -> None:
    if "prepare" in config.stages:
        from hydratune.build.data import read_rows

        read_rows(config.data)


def _model(config: Config) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from hydratune.build.model import load_tokenizer, model_source

    source = model_source(config.model, cache_dir(config))
    try:
        settings: Any = AutoConfig.from_pretrained(
            source, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.name_or_path={config.model.name_or_path} could not be loaded: {str(error).splitlines()[0]}"
        ) from None
    load_tokenizer(config.model, source)
    targets = config.lora.target_modules
    if config.lora.kind == "none" or isinstance(targets, str):
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=config.model.trust_remote_code)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    real = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
    wrong = [
        f"lora.target_modules names {t!r}, which matches no module of the model: it has {', '.join(real)}."
        for t in targets
        if not any(name == t or name.endswith(f".{t}") for name, _ in model.named_modules())
    ]
    if wrong:
        raise ConfigError(wrong)


def _tasks(config: Config) -> None:
    if "evaluate" not in config.stages or not config.benchmark.tasks:
        return
    from hydratune.stages.evaluate import task_manager

    manager = task_manager(config.benchmark)
    wrong = [
        f"benchmark.tasks names {task!r}, which lm-eval does not know{suggestion(task, manager.all_tasks)}."
        for task in config.benchmark.tasks
        if task not in manager.all_tasks
    ]
    if wrong:
        raise ConfigError(wrong)
