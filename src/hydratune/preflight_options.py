"""The options that go to the libraries, against the installed ones."""

import inspect
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from hydratune.config.schema import Config, ConfigError
from hydratune.config.values import suggestion
from hydratune.hints import fits, words


def _options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The named parameters of a function or class, and their types where they are annotated."""
    named = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    kept = [one for one in named if one.kind not in variable and one.name not in ("self", "config")]
    return {one.name: _type_of(one) for one in kept if not one.name.startswith("_")}


def _type_of(parameter: inspect.Parameter) -> Any:
    """As annotated, else that of a plain default."""
    if parameter.annotation is not inspect.Parameter.empty and not isinstance(parameter.annotation, str):
        return parameter.annotation
    return type(parameter.default) if isinstance(parameter.default, bool | float) else Any


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
        "quantization": _options_of(BitsAndBytesConfig),
        "model": _options_of(PreTrainedModel.from_pretrained)
        | dict.fromkeys([name for name in taken if not name.startswith("_") and name != "state_dict"], Any),
    }


def check_options(config: Config) -> None:
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
        ("trl refuses the trainer group", lambda: _optimizer(build_trainer_args(config, resolve(config), Path(".")))),
    ]
    for what, build in builders:
        try:
            build()
        except (TypeError, ValueError, ImportError) as error:
            wrong.append(f"{what}: {' '.join(str(error).split())}")
        except ConfigError:
            pass  # of the hardware, which _hardware says
    if wrong:
        raise ConfigError(wrong)


def check_generation(config: Config) -> None:
    """Names in benchmark.gen_kwargs against what generation knows."""
    if not config.benchmark.gen_kwargs:
        return
    from transformers import GenerationConfig

    known = [*(name for name in vars(GenerationConfig()) if not name.startswith("_")), "until", "max_gen_toks"]
    wrong = [
        f"benchmark.gen_kwargs.{name} is nothing that generation knows{suggestion(name, known)}."
        for name in config.benchmark.gen_kwargs
        if name not in known
    ]
    if wrong:
        raise ConfigError(wrong)


def _optimizer(args: Any) -> None:
    """Raises ImportError or ValueError where what trainer.optim names isn't installed, or needs more."""
    from hydratune.build.trainer import Trainer

    Trainer.get_optimizer_cls_and_kwargs(args)
