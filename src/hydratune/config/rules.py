"""Rules that span groups, each a sentence that ends with what to type. A single value is values.py's."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from hydratune.config.benchmark_rules import broken_benchmark_rules
from hydratune.config.data_rules import broken_data_rules
from hydratune.config.schema import STAGES, Broken, Config
from hydratune.config.trainer_rules import broken_trainer_rules
from hydratune.config.values import suggestion

MODELS = ("base", "adapter", "merged")
OF_TRAINING = (
    "train/validation_loss",
    "train/loss",
    "train/seconds",
)  # what `objective` may name beside a model's scores
# initialisations of an adapter that change the base weights too, so that a merge onto the base would be wrong
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "eva", "lora_ga")
# beginnings of the names of optimizers that group the weights in their own way
UNGROUPED = ("galore", "lomo", "adalomo", "apollo")


def broken_rules(config: Config) -> list[Broken]:
    """Every rule that is broken; an empty list is a sound configuration."""
    return [
        *_stages(config),
        *_without_effect(config),
        *_objective(config),
        *_model(config),
        *broken_data_rules(config),
        *_adapter(config),
        *broken_trainer_rules(config),
        *broken_benchmark_rules(config),
    ]


def _stages(config: Config) -> Iterator[Broken]:
    if not config.name or "/" in config.name:
        yield Broken(("name",), f"name is a part of the run directory's name, found {config.name!r}: leave out every /")
    if config.run_dir == "":
        yield Broken(("run_dir",), "run_dir is empty: set run_dir=DIR, or leave it out")
    for stage in config.stages:
        if stage not in STAGES:
            near = suggestion(stage, STAGES)
            yield Broken(("stages",), f"stages takes {', '.join(STAGES)}, found {stage!r}{near}")
    known = [stage for stage in config.stages if stage in STAGES]
    ordered = sorted(set(known), key=STAGES.index)
    if known != ordered:
        yield Broken(("stages",), f"stages run in the order in which they are given: set stages=[{','.join(ordered)}]")
    for key, models in (("benchmark.models", config.benchmark.models), ("generate.models", config.generate.models)):
        for name in models:
            if name not in MODELS:
                yield Broken((key,), f"{key} takes {', '.join(MODELS)}, found {name!r}{suggestion(name, MODELS)}")
    if not config.generate.models:
        yield Broken(("generate.models",), "generate.models is empty: set generate.models=[base,merged]")
    if config.lora.kind == "none" and "adapter" in config.generate.models:
        yield Broken(
            ("generate.models", "lora"), "generate.models names the adapter, and lora=none trains none: leave it out"
        )


def _objective(config: Config) -> Iterator[Broken]:
    name = config.objective
    if name is None:
        return
    model, _, metric = name.partition("/")
    if name not in OF_TRAINING and (model not in MODELS or "/" not in metric):
        near = suggestion(name, OF_TRAINING)
        yield Broken(
            ("objective",),
            f"objective is {', '.join(OF_TRAINING)}, or MODEL/TASK/METRIC such as merged/arc_easy/acc, found {name!r}{near}",
        )
    elif name == "train/validation_loss" and not _validates(config):
        yield Broken(
            ("objective", "data"),
            "objective=train/validation_loss needs validation rows: set data.validation_share=0.1, or leave it out",
        )
    elif model in MODELS and not config.benchmark.tasks:
        yield Broken(
            ("objective", "benchmark"),
            f"objective={name} is measured by evaluate, and benchmark=none: set benchmark.tasks=[...]",
        )
    elif model in MODELS and model not in config.benchmark.models:
        yield Broken(
            ("objective", "benchmark.models"),
            f"objective={name} is about a model that benchmark.models leaves out: set benchmark.models=[{model}]",
        )


def _validates(config: Config) -> bool:
    data = config.data
    sources = [entry for entry in data.mix if isinstance(entry, dict)]
    found = [data.validation_path, data.validation_split, data.validation_share]
    return any(value is not None for value in found) or any(
        key.startswith("validation") for one in sources for key in one
    )


def _without_effect(config: Config) -> Iterator[Broken]:
    """Keys that were set where nothing reads them."""
    q = config.quantization
    four_bit = [f.name for f in fields(q) if f.name.startswith("bnb_4bit")]
    inactive: list[tuple[str, list[str] | None, str]] = []  # group, its keys (None: all but kind), why
    if config.lora.kind == "none":
        inactive += [("lora", None, "lora=none"), ("merge", None, "lora=none")]
    if config.tracking.kind == "off":
        inactive.append(("tracking", None, "tracking=off"))
    if not config.generate.do_sample:
        inactive.append(("generate", ["temperature", "top_k", "top_p"], "generate.do_sample=false"))
    if q.kind == "none":
        inactive.append(("quantization", None, "quantization=none"))
    elif q.kind == "int8":
        inactive.append(("quantization", four_bit, "quantization=int8"))
    else:
        inactive.append(("quantization", ["llm_int8_threshold"], f"quantization={q.kind}"))
    for group, names, why in inactive:
        conf = getattr(config, group)
        default = type(conf)()
        for f in fields(conf):
            value = getattr(conf, f.name)
            if f.name != "kind" and (names is None or f.name in names) and value != getattr(default, f.name):
                key = f"{group}.{f.name}"
                yield Broken((key, why.partition("=")[0]), f"{key}={value} has no effect with {why}")


def _model(config: Config) -> Iterator[Broken]:
    m, about = config.model, ("model",)
    if m.name_or_path is None and m.package is None:
        yield Broken(
            about, "no model is named: set model.name_or_path=DIR (a folder or a hub id), or choose model=demo"
        )
    if m.name_or_path is not None and m.package is not None:
        yield Broken(
            about, f"model.name_or_path={m.name_or_path} and model.package={m.package} name two models: set model=local"
        )
    if m.package and not m.gguf_file:
        yield Broken(about, "model.package needs model.gguf_file, the name of the file in that package")
    if m.attn_implementation == "flash_attention_2" and m.dtype == "float32":
        yield Broken(
            ("model.attn_implementation", "model.dtype"),
            "model.attn_implementation=flash_attention_2 computes in 16 bits: set model.dtype=bfloat16",
        )


def _adapter(config: Config) -> Iterator[Broken]:
    q, lora = config.quantization, config.lora
    if q.kind != "none" and lora.kind == "none":
        yield Broken(
            ("quantization", "lora"),
            f"quantization={q.kind} freezes the base weights, so it needs an adapter: "
            "set lora=all_linear, or quantization=none",
        )
    init = str(lora.init_lora_weights).lower()
    if init.startswith("pissa") and q.kind == "none":
        if not re.fullmatch(r"pissa(_niter_[1-9]\d*)?", init):
            yield Broken(
                ("lora.init_lora_weights",),
                "lora.init_lora_weights is pissa, or pissa_niter_ and a number of iterations, found "
                f"{lora.init_lora_weights!r}: set lora.init_lora_weights=pissa_niter_4",
            )
    elif init.startswith(CHANGES_BASE):
        why = (
            f"needs the base's own weights, found quantization={q.kind}"
            if q.kind != "none"
            else "changes the base weights too, and merge puts the adapter onto the unchanged ones"
        )
        yield Broken(
            ("lora.init_lora_weights", "quantization"),
            f"lora.init_lora_weights={lora.init_lora_weights} {why}: set "
            f"{'quantization=none model.dtype=float32' if init.startswith('pissa') else 'lora.init_lora_weights=true'}",
        )
    if lora.kind != "none" and not lora.target_modules:
        yield Broken(
            ("lora.target_modules", "lora"),
            f"lora.target_modules is all-linear, a list or a regular expression, found {lora.target_modules!r}: "
            "set lora.target_modules=all-linear",
        )
    yield from _tokens(config)
    wide = next((name for name in UNGROUPED if config.trainer.optim.startswith(name)), None)
    if lora.loraplus_lr_ratio is not None and wide:
        yield Broken(
            ("lora.loraplus_lr_ratio", "trainer.optim"),
            f"lora.loraplus_lr_ratio needs an optimizer with a learning rate for each group of weights, found "
            f"trainer.optim={config.trainer.optim}: set trainer.optim=adamw_torch",
        )
    both = set(_names(lora.target_modules)) & set(lora.modules_to_save or [])
    if both:
        yield Broken(
            ("lora.target_modules", "lora.modules_to_save"),
            f"{', '.join(sorted(both))} is both in lora.target_modules and in lora.modules_to_save: leave it out of one",
        )
    if config.merge.base == "measure" and not config.merge.verify:
        yield Broken(("merge.base", "merge.verify"), "merge.base=measure needs merge.verify=true, which measures")
    if config.merge.base == "dequantized" and q.kind == "none":
        yield Broken(
            ("merge.base", "quantization"),
            "merge.base=dequantized needs a quantized base, found quantization=none: set merge.base=original",
        )


def _tokens(config: Config) -> Iterator[Broken]:
    """That each name or number stands once, and can be one."""
    tokens, ids = config.model.add_tokens, config.lora.trainable_token_indices or []
    empty = [token for token in tokens if not token.strip()]
    if empty:
        yield Broken(("model.add_tokens",), f"model.add_tokens holds {empty[0]!r}, which is no token: leave it out")
    again = [token for token, count in Counter(tokens).items() if count > 1]
    if again:
        yield Broken(("model.add_tokens",), f"model.add_tokens holds {again[0]!r} more than once: leave it out once")
    if config.trainer.fsdp and config.lora.kind != "none" and (tokens or ids):
        key = "model.add_tokens" if tokens else "lora.trainable_token_indices"
        yield Broken(
            (key, "trainer.fsdp"),
            f"{key} trains some rows of the embedding, which trainer.fsdp=true has in parts: set trainer.fsdp=false",
        )
    wrong = [number for number, count in Counter(ids).items() if count > 1 or number < 0]
    if wrong:
        yield Broken(
            ("lora.trainable_token_indices",),
            f"lora.trainable_token_indices takes each token id once, and none below 0, found {wrong[0]}: leave it out",
        )


def _names(targets: Any) -> list[str]:
    return list(targets) if isinstance(targets, list | tuple) else []
