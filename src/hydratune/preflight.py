"""Every failure that can be found without weights, all listed at once."""

import inspect
import json
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import cache, reduce
from pathlib import Path
from typing import Any, get_type_hints

from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, ConfigError, ModelConf
from hydratune.config.values import suggestion
from hydratune.hints import fits, words

# what decides which modules an adapter gets, whatever its rank
ADAPTED = tuple(
    f"lora.{name}"
    for name in (
        "kind",
        "target_modules",
        "modules_to_save",
        "layers_to_transform",
        "rank_pattern",
        "alpha_pattern",
        "extra",
    )
)


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

    def ask(step: Callable[[Config], None], config: Config, reads: tuple[str, ...]) -> list[str]:
        plain = asdict(config)
        key = json.dumps([step.__name__, *(reduce(dict.__getitem__, name.split("."), plain) for name in reads)])
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
                for step, reads, stage in STEPS
                if stages and (stage is None or stage in stages)
                for sentence in ask(step, config, reads)
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
    from hydratune.build.model import load_tokenizer
    from hydratune.build.source import locate

    source, gguf = locate(config.model, cache_dir(config))
    _settings(json.dumps(asdict(config.model)), str(cache_dir(config)))
    load_tokenizer(config.model, source, **gguf)


@cache
def _settings(model: str, cache_root: str) -> Any:
    """transformers' configuration of the model, conf/model as JSON. Raises ConfigError where there is none."""
    from transformers import AutoConfig

    from hydratune.build.source import locate, not_loaded

    conf = ModelConf(**json.loads(model))
    source, gguf = locate(conf, Path(cache_root))
    try:
        return AutoConfig.from_pretrained(
            source, revision=conf.revision, trust_remote_code=conf.trust_remote_code, **gguf
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
    """Every module that the adapter, or the quantization, names is one of the model's, and peft can adapt it."""
    import torch
    from peft.tuners.lora import LoraModel

    from hydratune.build.lora import build_lora

    lora, skipped = config.lora, config.quantization.llm_int8_skip_modules or []
    try:
        model = _skeleton(json.dumps(asdict(config.model)), str(cache_dir(config)))
        built = build_lora(lora)
    except (ConfigError, TypeError, ValueError):
        return  # said by _model and _options
    names = [name for name, _ in model.named_modules()]

    def ends(name: str) -> bool:
        return any(module == name or module.endswith(f".{name}") for module in names)

    def matches(pattern: str) -> bool:
        """As peft matches the keys of rank_pattern and alpha_pattern."""
        try:
            return any(re.fullmatch(rf"(.*\.)?({pattern})", module) for module in names)
        except re.error:
            return False

    targets = lora.target_modules if isinstance(lora.target_modules, list) else []
    missing = [("lora.target_modules", name) for name in targets if not ends(name)]
    missing += [("lora.modules_to_save", name) for name in lora.modules_to_save or [] if not ends(name)]
    missing += [("lora.rank_pattern", name) for name in lora.rank_pattern if not matches(name)]
    missing += [("lora.alpha_pattern", name) for name in lora.alpha_pattern if not matches(name)]
    missing += [("quantization.llm_int8_skip_modules", name) for name in skipped if not ends(name)]
    linear = {n.rpartition(".")[2] for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    has = f"the model has {', '.join(sorted(linear - {'lm_head'}))}"
    wrong = [f"{key} names {name!r}, which matches no module of the model: {has}." for key, name in missing]
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    wrong += [
        f"lora.layers_to_transform names layer {number}, and the model has the layers 0 to {layers - 1}."
        for number in lora.layers_to_transform or []
        if not 0 <= number < layers
    ]
    if not wrong and built is not None:
        try:
            with torch.device("meta"):
                adapted = LoraModel(deepcopy(model), built, "default").targeted_module_names
        except (TypeError, ValueError, re.error) as error:
            said = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
            wrong.append(f"lora.target_modules={lora.target_modules}: {said}; {has}.")
        else:
            beside = _beside_the_text(model, adapted)
            if beside:
                wrong.append(
                    f"lora.target_modules={lora.target_modules} reaches {len(beside)} modules that text never does, "
                    f"such as {beside[0]}: set lora=language_model."
                )
    if wrong:
        raise ConfigError(wrong)


@cache
def _library_options() -> dict[str, dict[str, Any]]:
    """Group with `extra` -> the options of its library's class and their types."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel
    from trl import SFTConfig

    # from_pretrained names most of its options only where it takes them from its keyword arguments
    taken = re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(PreTrainedModel.from_pretrained))
    return {
        "trainer": get_type_hints(SFTConfig),
        "lora": get_type_hints(LoraConfig),
        "quantization": dict.fromkeys(inspect.signature(BitsAndBytesConfig).parameters, Any),
        "model": dict.fromkeys([*inspect.signature(PreTrainedModel.from_pretrained).parameters, *taken], Any),
    }


def _beside_the_text(model: Any, adapted: Sequence[str]) -> list[str]:
    """Those of the `adapted` modules that are in another part of the model than its language model: an image encoder."""
    decoder = model.get_decoder()
    if decoder is None or model.config.get_text_config() is model.config:
        return []
    root = next(name for name, module in model.named_modules() if module is decoder)
    return [name for name in adapted if not name.startswith(f"{root}.") and name != "lm_head"]


def _options(config: Config) -> None:
    """Names and types in `extra` against the installed libraries' own, and values against the libraries' own checks."""
    from hydratune.build.hardware import resolve
    from hydratune.build.lora import build_lora
    from hydratune.build.quantization import build_quantization
    from hydratune.build.trainer import build_trainer_args

    wrong = []
    for group, hints in _library_options().items():
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


def _tracking(config: Config) -> None:
    from hydratune.build.tracking import check_tracking

    check_tracking(config.tracking)


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


# each step, the groups or keys that its answer depends on, and the stage that needs it (None: any)
STEPS: tuple[tuple[Callable[[Config], None], tuple[str, ...], str | None], ...] = (
    (_hardware, ("model", "quantization", "lora", "trainer"), None),
    (_data, ("data",), "prepare"),
    (_model, ("model",), None),
    (_adapter, ("model", "quantization", *ADAPTED), "train"),
    (_options, ("model", "quantization", "lora", "trainer"), "train"),
    (_sockets, ("trainer",), "train"),
    (_tracking, ("tracking",), "train"),
    (_tasks, ("benchmark",), "evaluate"),
)
