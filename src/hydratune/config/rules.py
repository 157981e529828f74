"""Rules that the configuration alone can break: choices, ranges, and what spans groups."""

import difflib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from hydratune.config.schema import STAGES, Config

# a library's option -> the key of ours that owns it
OWNED = {
    "output_dir": "run_dir", "seed": "seed", "data_seed": "seed", "report_to": "tracking.kind", "run_name": "name",
    "bf16": "trainer.precision", "fp16": "trainer.precision", "assistant_only_loss": "data.loss",
    "completion_only_loss": "data.loss", "use_cpu": "the machine", "disable_tqdm": "the terminal",
    "model_init_kwargs": "model", "dataset_kwargs": "data", "quantization_config": "quantization",
    "torch_dtype": "model.dtype", "pretrained_model_name_or_path": "model.name_or_path", "task_type": "lora",
    "logging_nan_inf_filter": "hydratune, which stops at a loss that is not finite",
    "gradient_checkpointing_kwargs": "trainer.gradient_checkpointing", "resume_from_checkpoint": "run_dir",
}  # fmt: skip
# options of SFTConfig that its trainer would never read: prepare makes the tokens, and no rows are held out
UNREAD = (
    "packing", "packing_strategy", "padding_free", "eval_packing", "truncation_mode", "dataset_text_field",
    "dataset_num_proc", "chat_template_path", "eos_token", "eval_strategy", "eval_steps", "eval_delay",
    "eval_on_start", "per_device_eval_batch_size", "load_best_model_at_end", "metric_for_best_model",
)  # fmt: skip
# initialisations of an adapter that change the base weights too, so that a merge onto the base would be wrong
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "eva")


def suggestion(word: str, names: list[str]) -> str:
    """' (did you mean X?)' for the nearest of `names`, or ''."""
    near = difflib.get_close_matches(word, names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def broken_rules(config: Config) -> list[str]:
    """Every sentence that applies; an empty list is a sound configuration."""
    return [
        *_choices(config, ""),
        *_ranges(config),
        *_owners(config),
        *_without_effect(config),
        *_across_groups(config),
    ]


def _choices(node: Any, prefix: str) -> Iterator[str]:
    for f in fields(node):
        value, allowed = getattr(node, f.name), f.metadata.get("choices")
        if is_dataclass(value):
            yield from _choices(value, f"{prefix}{f.name}.")
        elif allowed and value not in allowed:
            near = suggestion(value, list(allowed))
            yield f"{prefix}{f.name} is one of {', '.join(allowed)}, found {value!r}{near}."


def _ranges(config: Config) -> Iterator[str]:
    t, lora = config.trainer, config.lora
    positive = {
        "lora.r": lora.r, "lora.lora_alpha": lora.lora_alpha, "trainer.max_length": t.max_length,
        "trainer.per_device_train_batch_size": t.per_device_train_batch_size,
        "trainer.gradient_accumulation_steps": t.gradient_accumulation_steps,
        "trainer.learning_rate": t.learning_rate, "trainer.logging_steps": t.logging_steps,
        "trainer.save_steps": t.save_steps, "benchmark.batch_size": config.benchmark.batch_size,
        "generate.max_new_tokens": config.generate.max_new_tokens,
    }  # fmt: skip
    yield from (f"{key} must be above 0, found {value}." for key, value in positive.items() if not value > 0)
    if not 0 <= lora.lora_dropout < 1:
        yield f"lora.lora_dropout is a probability, at least 0 and below 1, found {lora.lora_dropout}."
    if t.max_steps <= 0 and t.max_steps != -1:
        yield f"trainer.max_steps is above 0, or -1 for whole epochs, found {t.max_steps}."
    if t.max_steps == -1 and t.num_train_epochs <= 0:
        yield f"trainer.num_train_epochs must be above 0, found {t.num_train_epochs}."


def _owners(config: Config) -> Iterator[str]:
    groups: dict[str, Any] = {"model": config.model, "lora": config.lora, "trainer": config.trainer}
    for name, group in groups.items():
        own = [f.name for f in fields(group)]
        for key in group.extra:
            if key in own:
                yield f"{name}.extra.{key} has a field of its own: set {name}.{key}."
            elif key in OWNED:
                yield f"{name}.extra.{key} belongs to {OWNED[key]}: set it there."
            elif key in UNREAD:
                yield f"{name}.extra.{key} would have no effect: prepare makes the tokens, and no rows are held out."


def _without_effect(config: Config) -> Iterator[str]:
    """Keys that were set where nothing reads them."""
    inactive: list[tuple[str, Any, str]] = []
    if config.lora.kind == "none":
        inactive.append(("lora", config.lora, "lora=none"))
    if config.tracking.kind == "off":
        inactive.append(("tracking", config.tracking, "tracking=off"))
    if not config.generate.do_sample:
        inactive.append(("generate", config.generate, "generate.do_sample=false"))
    if config.quantization.kind not in ("nf4", "fp4"):
        inactive.append(("quantization", config.quantization, f"quantization={config.quantization.kind}"))
    for group, conf, why in inactive:
        default = type(conf)()
        for f in fields(conf):
            read_anyway = f.name == "kind" or (group == "generate" and f.name not in ("temperature", "top_p"))
            if not read_anyway and getattr(conf, f.name) != getattr(default, f.name):
                yield f"{group}.{f.name}={getattr(conf, f.name)} has no effect with {why}."


def _across_groups(config: Config) -> Iterator[str]:
    for stage in config.stages:
        if stage not in STAGES:
            near = suggestion(stage, list(STAGES))
            yield f"stages takes {', '.join(STAGES)}, found {stage!r}{near}."
    if not config.stages:
        yield f"stages is empty: name at least one of {', '.join(STAGES)}."
    q, lora, m = config.quantization, config.lora, config.model
    if q.kind != "none" and lora.kind == "none":
        yield (
            f"quantization={q.kind} freezes the base weights, so it needs an adapter: "
            "set lora=all_linear, or quantization=none."
        )
    init = str(lora.extra.get("init_lora_weights", ""))
    if init.lower().startswith(CHANGES_BASE):
        yield (
            f"lora.extra.init_lora_weights={init} changes the base weights too, and merge puts the adapter onto the "
            "unchanged ones: leave it out."
        )
    if lora.kind == "none" and config.trainer.precision == "float16" and m.dtype == "float16":
        yield "trainer.precision=float16 scales gradients of float32 weights, found model.dtype=float16: set model.dtype=float32."
    if config.merge.base == "dequantized" and q.kind not in ("nf4", "fp4"):
        yield f"merge.base=dequantized needs a 4-bit base, found quantization={q.kind}: set merge.base=original."
    if m.name_or_path is None and m.package is None:
        yield "No model is named: set model.name_or_path=DIR (a folder or a hub id), or model=demo."
    if m.package and not m.gguf_file:
        yield "model.package needs model.gguf_file, the name of the file in that package."
    if config.data.path is None and {"prepare", "train"} & set(config.stages):
        yield "No data is named: set data.path=FILE, or data=demo."
    for name in config.benchmark.models:
        if name not in ("base", "adapter", "merged"):
            yield f"benchmark.models takes base, adapter, merged, found {name!r}."
