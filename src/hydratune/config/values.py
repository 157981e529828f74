"""One value against the schema: is there such a key, has the value its type, is it one that may be chosen, in range."""

import difflib
import math
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import Field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Any, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.schema import Config
from hydratune.hints import fits, words

# a library's option -> the key of ours that owns it
OWNED = {
    "output_dir": "run_dir", "seed": "seed", "data_seed": "seed", "report_to": "tracking.kind", "run_name": "name",
    "bf16": "trainer.precision", "fp16": "trainer.precision", "assistant_only_loss": "data.loss",
    "completion_only_loss": "data.loss", "dataset_text_field": "data.columns", "model_init_kwargs": "model",
    "quantization_config": "quantization", "torch_dtype": "model.dtype", "load_in_4bit": "quantization.kind",
    "load_in_8bit": "quantization.kind", "bnb_4bit_quant_type": "quantization.kind",
    "pretrained_model_name_or_path": "model.name_or_path", "activation_checkpointing": "trainer.gradient_checkpointing",
    "max_seq_length": "trainer.max_length", "train_batch_size": "trainer.per_device_train_batch_size",
    "resume_from_checkpoint": "run_dir", "warmup_ratio": "trainer.warmup_steps", "use_cpu": "the machine",
    "disable_tqdm": "the terminal", "dataset_kwargs": "data", "task_type": "lora.kind", "quant_method": "quantization.kind",
    "activation_checkpointing_kwargs": "trainer.gradient_checkpointing",
    "gradient_checkpointing_kwargs": "trainer.gradient_checkpointing",
    "logging_nan_inf_filter": "hydratune, which stops at a loss that is not finite",
    "hub_token": "the environment, as HF_TOKEN", "subfolder": "model.name_or_path", "peft_type": "lora.kind",
    "base_model_name_or_path": "model.name_or_path", "use_safetensors": "hydratune, which loads nothing else",
    "packing": "data.packing", "padding_free": "data.padding_free", "eval_strategy": "trainer.eval_steps",
    "remove_unused_columns": "hydratune, whose rows have columns that its collator reads",
    "prediction_loss_only": "hydratune, which keeps no logits",
    "save_strategy": "trainer.save_steps", "logging_strategy": "trainer.logging_steps",
    "pad_to_multiple_of": "hydratune, whose collator pads to the longest row",
    "auto_find_batch_size": "trainer.per_device_train_batch_size", "ignore_data_skip": "hydratune, which goes on exactly",
    "save_on_each_node": "hydratune, whose run directory all nodes see", "push_to_hub": "huggingface-cli upload",
    "fsdp_config": "trainer.fsdp", "ddp_find_unused_parameters": "hydratune, which knows what is trained",
    "weights_only": "hydratune, which loads safetensors alone", "inference_mode": "hydratune",
}  # fmt: skip
OWNED |= dict.fromkeys(
    ["bf16_full_eval", "fp16_full_eval", "eval_accumulation_steps", "batch_eval_metrics", "include_for_metrics",
     "eval_do_concat_batches", "eval_use_gather_object"],
    "hydratune, which measures the validation loss itself",
)  # fmt: skip
# options of SFTConfig that its trainer would never read: prepare makes the tokens
UNREAD = (
    "packing_strategy",
    "eval_packing",
    "truncation_mode",
    "dataset_num_proc",
    "chat_template_path",
    "eos_token",
    "eval_delay",
    "eval_on_start",
    "metric_for_best_model",
    "greater_is_better",
    "do_train",
    "do_eval",
    "do_predict",
    "shuffle_dataset",
    "auto_mapping",
)
FETCHES_CODE = ("use_kernels", "kernel_config", "allow_all_kernels")  # of from_pretrained  # fmt: skip
# what people type who know the thing by a shorter name
SHORT = {"rank": "lora.r", "lr": "trainer.learning_rate", "batch_size": "trainer.per_device_train_batch_size"}
# what OmegaConf can't say in a field's type
ANY_OF = {
    "lora.target_modules": str | list[str],
    "lora.init_lora_weights": bool | str,
    "benchmark.batch_size": int | str,
}


@cache
def schema_keys() -> dict[str, tuple[Any, Field[Any]]]:
    """Every key that holds a value, dotted -> its type and its field."""

    def walk(kind: type, prefix: str) -> Iterator[tuple[str, tuple[Any, Field[Any]]]]:
        hints = get_type_hints(kind)
        for f in fields(kind):
            if is_dataclass(hints[f.name]):
                yield from walk(hints[f.name], f"{prefix}{f.name}.")
            else:
                yield prefix + f.name, (hints[f.name], f)

    return dict(walk(Config, ""))


@cache
def groups() -> dict[str, type]:
    """Name of each group of settings -> its class."""
    hints = get_type_hints(Config)
    return {f.name: hints[f.name] for f in fields(Config) if is_dataclass(hints[f.name])}


def owner(key: str) -> str:
    """The key of the schema that `key` is, or lies in: trainer.extra for trainer.extra.adam_beta1; '' for none."""
    parts = key.split(".")
    known = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((name for name in known if name in schema_keys() and (name == key or _is_mapping(name))), "")


def suggestion(word: str, names: Any) -> str:
    """' (did you mean X?)' for the nearest of `names`, or ''."""
    near = difflib.get_close_matches(word, list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def unknown_key(key: str, form: str = "typed") -> str:
    """The sentence for a key that isn't there, with the one that was meant where that can be told.

    `form` is that of the setting: how one of a library's own is written depends on it.
    """
    group, _, name = key.rpartition(".")
    if group and name in OWNED:
        return f"there is no key {key}: {name} belongs to {OWNED[name]}"
    same_name = [known for known in schema_keys() if known.rpartition(".")[2] == name]
    in_group = [known for known in schema_keys() if known.rpartition(".")[0] == group]
    near = [SHORT[name]] if name in SHORT else []
    if group in groups():
        near = near or [f"{group}.{one}" for one in _alike(name, [known.rpartition(".")[2] for known in in_group])]
    near = near or difflib.get_close_matches(key, same_name, n=1, cutoff=0)
    if group not in groups():
        near = near or difflib.get_close_matches(key, [*schema_keys(), *groups()], n=1, cutoff=0.7)
    if near:
        return f"there is no key {key} (did you mean {near[0]}?)"
    if f"{group}.extra" in schema_keys() and name[:1].isalpha():
        if form == "file":
            return f"there is no key {key}; for an option of the library's own, write {name}: below {group}.extra"
        sign = ": " if form == "swept" else "="
        return f"there is no key {key}; an option of the library's own goes through +{group}.extra.{name}{sign}VALUE"
    return f"there is no key {key}"


def _alike(name: str, names: list[str]) -> list[str]:
    """The nearest of `names`; one that `name` begins with is near too, so that rnak is r."""
    name = name.lower()
    return difflib.get_close_matches(name, names, n=1, cutoff=0.5) or [one for one in names if name.startswith(one)][:1]


def value_problem(key: str, value: Any) -> str | None:
    """What is wrong with `value` under `key`, which the schema has: its type, choice or range; None where nothing is."""
    name = owner(key)
    kind, field = schema_keys()[name]
    if isinstance(value, str) and "${" in value:
        return None  # an interpolation: known when the whole is composed
    if name != key:  # an entry of a mapping; preflight knows its type
        return _extra_problem(name, key.removeprefix(f"{name}."))
    if kind is Any and not fits(value, ANY_OF[name]):
        return f"{key} is {words(ANY_OF[name])}, found {_shown(value)}"
    if name == "benchmark.batch_size" and (value != "auto" if isinstance(value, str) else value < 1):
        return f"{key} is a whole number above 0, or auto, found {_shown(value)}: set {key}=auto"
    try:
        value = converted(name, value)
    except OmegaConfBaseException:
        return f"{key} is {words(kind)}, found {_shown(value)}"
    allowed = field.metadata["choices"]
    if allowed and value not in allowed:
        return f"{key} is one of {', '.join(allowed)}, found {_shown(value)}{suggestion(value, allowed)}"
    if isinstance(value, float | int) and not isinstance(value, bool):
        bounds = [
            (field.metadata["above"], lambda limit: value > limit, "above {}"),
            (field.metadata["least"], lambda limit: value >= limit, "at least {}"),
            (field.metadata["below"], lambda limit: value < limit, "below {}"),
            (field.metadata["most"], lambda limit: value <= limit, "at most {}"),
        ]
        said = [text.format(limit) for limit, _, text in bounds if limit is not None]
        if not math.isfinite(value) or not all(holds(limit) for limit, holds, _ in bounds if limit is not None):
            number = "finite number" if isinstance(value, float) else "whole number"
            return f"{key} is a {number} {' and '.join(said)}".rstrip() + f", found {value}"
    return None


def _extra_problem(mapping: str, name: str) -> str | None:
    """Of an option of a library in `mapping`: that a key of ours has it, or that it would do nothing."""
    group, _, last = mapping.rpartition(".")
    if last != "extra":
        return None
    if name in (f.name for f in fields(groups()[group])):
        return f"{mapping}.{name} has a key of its own: set {group}.{name}"
    if name in OWNED:
        return f"{mapping}.{name} belongs to {OWNED[name]}"
    if name == "save_only_model":
        return f"{mapping}.{name} would leave nothing to go on from after a stop: leave it out"
    if name in FETCHES_CODE:
        return f"{mapping}.{name} would fetch and run code: leave it out"
    if name in UNREAD:
        return f"{mapping}.{name} would have no effect: prepare makes the tokens"
    return None


def value_problems(config: Config) -> dict[str, str]:
    """Key -> sentence, for each value of `config` that is outside its choices or range."""
    found: dict[str, str | None] = {}
    for key in schema_keys():
        value = _pick(config, key)
        inner = [(f"{key}.{name}", entry) for name, entry in value.items()] if isinstance(value, dict) else []
        found |= {name: value_problem(name, entry) for name, entry in [(key, value), *inner]}
    return {key: said for key, said in found.items() if said}


def type_words(key: str) -> str:
    """'a whole number above 0', 'one of none, nf4': what `hydratune explain` says of a key's values."""
    kind, field = schema_keys()[key]
    if field.metadata["choices"]:
        return f"one of {', '.join(field.metadata['choices'])}"
    names = {"above": "above", "least": "at least", "below": "below", "most": "at most"}
    bounds = [f"{text} {field.metadata[name]}" for name, text in names.items() if field.metadata[name] is not None]
    return " ".join([words(ANY_OF.get(key, kind)), " and ".join(bounds)]).rstrip()


def _pick(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@cache
def _structured(group: str) -> DictConfig:
    """The keys of one group, or with '' those that are in none: cheaper to make than the whole schema."""
    if group:
        return OmegaConf.structured(groups()[group])
    own = [(key, kind, copy(default)) for key, (kind, default) in schema_keys().items() if "." not in key]
    return OmegaConf.structured(make_dataclass("Root", own))


def converted(key: str, value: Any) -> Any:
    """`value` as OmegaConf takes it for `key`, plain. Raises OmegaConfBaseException, also where there is no such key."""
    if owner(key) not in ("", key):
        return value
    group, _, name = key.rpartition(".")
    node = _structured(group)
    node[name] = value
    taken = node[name]
    return OmegaConf.to_container(taken) if OmegaConf.is_config(taken) else taken


def _is_mapping(key: str) -> bool:
    kind, _ = schema_keys()[key]
    return get_origin(kind) is dict


def _shown(value: Any) -> str:
    if isinstance(value, DictConfig | Mapping):
        return "a mapping"
    return "null" if value is None else f"{value!r:.60}"
