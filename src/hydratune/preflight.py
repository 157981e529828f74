"""Every failure that can be found without weights, all listed at once."""

import inspect
import json
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, ConfigError, ModelConf
from hydratune.config.values import suggestion
from hydratune.hints import fits, words


def check(config: Config, stages: list[str]) -> None:
    """Check what `stages`, those that will really run, need. Raises ConfigError with every sentence."""
    found = check_jobs([(config, stages)])[0]
    if found:
        raise ConfigError(found)


def check_jobs(jobs: Sequence[tuple[Config, list[str]]]) -> list[list[str]]:
    """The sentences of each job, of which jobs with the same settings share the work."""
    for library in ("bitsandbytes", "transformers", "lm_eval", "lm-eval"):
        logging.getLogger(library).setLevel(logging.ERROR)
    answers: dict[str, list[str]] = {}

    def ask(step: Callable[[Config], None], config: Config, groups: tuple[str, ...]) -> list[str]:
        plain = asdict(config)
        key = json.dumps([step.__name__, *(plain[group] for group in groups)])
        if key not in answers:
            try:
                answers[key] = []
                step(config)
            except ConfigError as error:
                answers[key] = error.sentences
        return answers[key]

    found = []
    with warnings.catch_warnings():  # nothing is written yet, so there is no log that would take them
        warnings.simplefilter("ignore")
        for config, stages in jobs:
            said = [
                sentence
                for step, groups, stage in STEPS
                if stages and (stage is None or stage in stages)
                for sentence in ask(step, config, groups)
            ]
            found.append(list(dict.fromkeys(said)))
    return found


def _hardware(config: Config) -> None:
    from hydratune.build.hardware import resolve

    resolve(config)


def _data(config: Config) -> None:
    from hydratune.build.data import read_rows

    read_rows(config.data)


def _model(config: Config) -> None:
    """The model's configuration and tokenizer."""
    from hydratune.build.model import load_tokenizer, locate

    source, gguf = locate(config.model, cache_dir(config))
    wrong = []
    for part in (lambda: _settings(config), lambda: load_tokenizer(config.model, source, **gguf)):
        try:
            part()
        except ConfigError as error:
            wrong += error.sentences
    if wrong:
        raise ConfigError(wrong)


def _settings(config: Config) -> Any:
    """transformers' configuration of the model. Raises ConfigError where there is none."""
    from transformers import AutoConfig

    from hydratune.build.model import locate, not_loaded

    source, gguf = locate(config.model, cache_dir(config))
    try:
        return AutoConfig.from_pretrained(
            source, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code, **gguf
        )
    except (OSError, ValueError) as error:
        raise not_loaded("model", source, error) from None


@cache
def _modules(model: str, cache_root: str) -> tuple[list[str], list[str], int]:
    """Names of all modules, and the last parts of the linear ones' but the head's; number of layers."""
    import torch
    from transformers import AutoModelForCausalLM

    conf = ModelConf(**json.loads(model))
    settings = _settings(replace(Config(), model=conf, cache_dir=cache_root))
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(settings, trust_remote_code=conf.trust_remote_code)
    linear = {name.rpartition(".")[2] for name, module in built.named_modules() if isinstance(module, torch.nn.Linear)}
    layers = getattr(settings.get_text_config(), "num_hidden_layers", 0)
    return [name for name, _ in built.named_modules()], sorted(linear - {"lm_head"}), layers


def _adapter(config: Config) -> None:
    """Every module that the adapter, or the quantization, names is one of the model's."""
    lora, skipped = config.lora, config.quantization.llm_int8_skip_modules or []
    targets = lora.target_modules
    by_name = targets if isinstance(targets, list) else []
    pattern = [targets] if isinstance(targets, str) and targets != "all-linear" else []
    patterns = [*lora.rank_pattern, *lora.alpha_pattern]
    if lora.kind == "none" or not (
        by_name or pattern or patterns or skipped or lora.modules_to_save or lora.layers_to_transform
    ):
        return
    try:
        names, linear, layers = _modules(json.dumps(asdict(config.model)), str(cache_dir(config)))
    except ConfigError:
        return  # _model says it

    def ends(name: str) -> bool:
        return any(module == name or module.endswith(f".{name}") for module in names)

    def matches(expression: str, whole: bool) -> bool:
        try:
            compiled = re.compile(expression if whole else rf"(.*\.)?({expression})$")
        except re.error:
            return False
        return any(compiled.fullmatch(module) for module in names)

    missing = [("lora.target_modules", name) for name in by_name if not ends(name)]
    missing += [("lora.target_modules", name) for name in pattern if not matches(name, True)]
    missing += [("lora.modules_to_save", name) for name in lora.modules_to_save or [] if not ends(name)]
    missing += [("lora.rank_pattern", name) for name in lora.rank_pattern if not matches(name, False)]
    missing += [("lora.alpha_pattern", name) for name in lora.alpha_pattern if not matches(name, False)]
    missing += [("quantization.llm_int8_skip_modules", name) for name in skipped if not ends(name)]
    wrong = [
        f"{key} names {name!r}, which matches no module of the model: it has {', '.join(linear)}."
        for key, name in missing
    ]
    wrong += [
        f"lora.layers_to_transform names layer {number}, and the model has the layers 0 to {layers - 1}."
        for number in lora.layers_to_transform or []
        if not 0 <= number < layers
    ]
    if wrong:
        raise ConfigError(wrong)


def _options(config: Config) -> None:
    """Names and types in `extra` against the installed libraries' own, and values against the libraries' own checks."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel
    from trl import SFTConfig

    from hydratune.build.hardware import resolve
    from hydratune.build.lora import build_lora
    from hydratune.build.quantization import build_quantization
    from hydratune.build.trainer import build_trainer_args

    # from_pretrained names most of its options only where it takes them from its keyword arguments
    taken = re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(PreTrainedModel.from_pretrained))
    known: dict[str, dict[str, Any]] = {
        "trainer": get_type_hints(SFTConfig),
        "lora": get_type_hints(LoraConfig),
        "quantization": dict.fromkeys(inspect.signature(BitsAndBytesConfig).parameters, Any),
        "model": dict.fromkeys([*inspect.signature(PreTrainedModel.from_pretrained).parameters, *taken], Any),
    }
    wrong = []
    for group, hints in known.items():
        for key, value in getattr(config, group).extra.items():
            if key not in hints:
                near = suggestion(key, hints)
                wrong.append(f"{group}.extra.{key} is not an option of the installed library{near}.")
            elif not fits(value, hints[key]):
                wrong.append(f"{group}.extra.{key} is {words(hints[key])}, found {value!r:.60}.")
    if wrong:
        raise ConfigError(wrong)
    builders: list[tuple[str, Callable[[], object]]] = [
        ("peft refuses the lora group", lambda: build_lora(config.lora)),
        ("transformers refuses the quantization group", lambda: build_quantization(config.quantization, "float32")),
        ("trl refuses the trainer group", lambda: build_trainer_args(config, resolve(config), Path("."))),
    ]
    for what, build in builders:
        try:
            build()
        except (TypeError, ValueError) as error:
            wrong.append(f"{what}: {' '.join(str(error).split())}")
        except ConfigError:
            pass  # of the hardware, which _hardware says
    if wrong:
        raise ConfigError(wrong)


def _sockets(config: Config) -> None:
    from hydratune.build.trainer import load_callbacks

    load_callbacks(config.trainer)


def _tasks(config: Config) -> None:
    from hydratune.build.benchmark import build_tasks

    names = build_tasks(config.benchmark).all_tasks
    wrong = [
        f"benchmark.tasks names {task!r}, which lm-eval does not know{suggestion(task, names)}."
        for task in config.benchmark.tasks
        if task not in names
    ]
    if wrong:
        raise ConfigError(wrong)


# each step, the groups that it reads, and the stage that needs it (None: any)
STEPS: tuple[tuple[Callable[[Config], None], tuple[str, ...], str | None], ...] = (
    (_hardware, ("model", "quantization", "lora", "trainer"), None),
    (_data, ("data",), "prepare"),
    (_model, ("model",), None),
    (_adapter, ("model", "lora", "quantization"), "train"),
    (_options, ("model", "quantization", "lora", "trainer"), "train"),
    (_sockets, ("trainer",), "train"),
    (_tasks, ("benchmark",), "evaluate"),
)
