"""Every key of the schema has an effect: another value gives another library object, or another output."""

import inspect
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from datasets import Dataset
from hydra._internal.callbacks import Callbacks
from hydra.types import HydraContext, RunMode
from lm_eval import evaluator
from omegaconf import DictConfig
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import SFTConfig

from hydra_plugins.hydratune_sweeps import GridSweeper
from hydratune import pipeline
from hydratune.build import lora, peft_merge, quantization, trainer
from hydratune.build.benchmark import build_tasks
from hydratune.build.data import training_parts
from hydratune.build.hardware import resolve
from hydratune.build.model import load_model, load_tokenizer
from hydratune.build.own_tasks import build_own_tasks
from hydratune.build.quantization import quantized_modules
from hydratune.build.source import gguf_path, locate
from hydratune.build.sources import DEMO
from hydratune.build.store import Prepared
from hydratune.build.tokens import build_tokens
from hydratune.build.tracking import set_up_tracking
from hydratune.config.load import FREE, cache_dir, config_hash
from hydratune.config.rules import broken_rules
from hydratune.config.saved import open_run, put, start_from
from hydratune.config.schema import Config, ConfigError, RunError
from hydratune.config.settings import config_loader
from hydratune.config.typed import Typed
from hydratune.config.values import schema_keys, value_problem, value_problems
from hydratune.run.layout import RunDir, write_json
from hydratune.run.objective import objective_of
from hydratune.stages import evaluate, generate, merge, prepare, train
from hydratune.sweep.jobs import Plan, planned
from hydratune.sweep.ranking import least_is_best

CODE = """
from transformers import TrainerCallback

def shout(row):
    return [{**turn, "content": turn["content"].upper()} for turn in row["messages"]]

class Watcher(TrainerCallback):
    pass
"""


@dataclass
class Bench:
    """Where a probe works: `files` are shared and only read, `new` is empty for each observation."""

    files: Path
    new: Path
    patch: pytest.MonkeyPatch

    @property
    def tiny(self) -> str:
        return str(self.files / "tiny")


Probe = Callable[[Config, Bench], Any]


@dataclass(frozen=True)
class Effect:
    """Two values of a key that `probe` tells apart. FILES and NEW in them stand for the bench's folders."""

    first: Any
    second: Any
    probe: Probe
    given: dict[str, Any] = field(default_factory=dict)  # other keys without which this one is not read
    same: bool = False  # what is observed is the value itself


# probes: what a configuration builds or writes


def sft(name: str) -> Probe:
    return lambda config, bench: getattr(trainer.build_trainer_args(config, resolve(config), Path("out")), name)


def of_lora(name: str) -> Probe:
    def probe(config: Config, bench: Bench) -> Any:
        value = getattr(lora.build_lora(config.lora), name)
        return sorted(value) if isinstance(value, set) else value

    return probe


def learning_rates(config: Config, bench: Bench) -> list[float]:
    """Of the optimizer's groups."""
    made = built_trainer(config, bench).create_optimizer()
    return [group["lr"] for group in made.param_groups if group["params"]]


def of_quantization(name: str) -> Probe:
    return lambda config, bench: getattr(
        quantization.build_quantization(config.quantization, resolve(config).compute_dtype), name
    )


def loading(config: Config, bench: Bench) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the model's and the tokenizer's from_pretrained are called with."""
    calls: dict[str, dict[str, Any]] = {}
    words = AutoTokenizer.from_pretrained(bench.tiny)

    def record(name: str, result: Any) -> Any:
        return lambda source, **options: (calls.update({name: options}), result)[1]

    with bench.patch.context() as patched:
        patched.setattr(AutoModelForCausalLM, "from_pretrained", record("model", torch.nn.Module()))
        patched.setattr(AutoTokenizer, "from_pretrained", record("tokenizer", words))
        load_model(config.model, "some/model", resolve(config), config.quantization)
        load_tokenizer(config.model, "some/model")
    return calls["model"], calls["tokenizer"]


def of_loading(name: str, both: bool = False) -> Probe:
    def probe(config: Config, bench: Bench) -> Any:
        model, tokenizer = loading(config, bench)
        return (model[name], tokenizer[name]) if both else model.get(name)

    return probe


def rendered(config: Config, bench: Bench) -> str:
    tokenizer = load_tokenizer(config.model, bench.tiny)
    return str(tokenizer.apply_chat_template([{"role": "user", "content": "Hello?"}], tokenize=False))


def rows_of(config: Config, bench: Bench) -> Any:
    return [repr(item.example) for part in training_parts(config.data) for item in part.items()]


def tokens_of(config: Config, bench: Bench) -> Any:
    """The training and validation rows as the trainer takes them, or why there are none."""
    tokenizer = load_tokenizer(config.model, bench.tiny)
    try:
        prepared = Prepared(build_tokens(config.data, tokenizer, config.trainer.max_length, bench.new))
    except ConfigError as error:
        return error.sentences
    return list(prepared.training), list(prepared.validation or [])


def asked_of_the_hub(config: Config, bench: Bench) -> Any:
    calls: list[Any] = []
    with bench.patch.context() as patched:
        rows = Dataset.from_list([{"messages": []}])
        patched.setattr("hydratune.build.sources.load_dataset", lambda *a, **o: (calls.append((a, o)), rows)[1])
        training_parts(config.data)
    return calls


def lines_of_a_batch(config: Config, bench: Bench) -> Any:
    """Shape of a batch of two rows."""
    config.trainer.max_steps, config.trainer.per_device_train_batch_size = 1, 2
    made = built_trainer(config, bench)
    return next(iter(made.get_train_dataloader()))["input_ids"].shape[0]


def built_trainer(config: Config, bench: Bench) -> Any:
    run = RunDir(bench.new / "run")
    config.cache_dir = str(bench.new / "cache")
    prepare.run(config, run, resolve(config))
    return train.build_trainer(config, run, resolve(config))


def written(pattern: str) -> Probe:
    """Paths that `pipeline.run` leaves, of those that match."""

    def probe(config: Config, bench: Bench) -> list[str]:
        pipeline.run(config, [])
        return sorted(str(path.relative_to(bench.new)) for path in bench.new.rglob(pattern))

    return probe


def root_of_tokens(config: Config, bench: Bench) -> str:
    (found,) = written("training.arrow")(config, bench)
    return Path(found).parts[0]


def folder_name(config: Config, bench: Bench) -> str | None:
    return open_run(deepcopy(config), Typed()).run_dir


def code_of_a_saved_run(config: Config, bench: Bench) -> str:
    saved = deepcopy(config)
    saved.trust, saved.trainer.callbacks = False, ["effects_code:Watcher"]
    (bench.new / "config.yaml").write_text(yaml.safe_dump(asdict(saved)))
    try:
        return str(start_from(bench.new, config, Typed()).trainer.callbacks)
    except ConfigError:
        return "refused"


def merged(observe: Callable[[RunDir], Any]) -> Probe:
    """What `observe` sees after the stage has run for real."""

    def probe(config: Config, bench: Bench) -> Any:
        run = RunDir(bench.new)
        shutil.copytree(bench.files / "adapter", run.adapter)
        prepare.run(config, run, resolve(config))
        loaded = load_model(config.model, str(bench.tiny), resolve(config), config.quantization)
        write_json(run.quantized, {"modules": quantized_modules(loaded)})  # as the stage train leaves it
        try:
            merge.run(config, run, resolve(config))
        except RunError as error:
            return str(error)
        return observe(run)

    return probe


def merges_with_peft(config: Config, bench: Bench) -> int:
    """How often the library's own merge is called, which then merges for real."""
    calls, real = [], peft_merge.merge_with_peft

    def record(*arguments: Any) -> None:
        calls.append(arguments)
        real(*arguments)

    with bench.patch.context() as patched:
        patched.setattr(peft_merge, "merge_with_peft", record)
        assert merged(weights)(config, bench)
    return len(calls)


def weights(run: RunDir) -> dict[str, Any]:
    return {
        name: (str(w.dtype), w.double().sum().item()) for name, w in load_file(run.merged / "model.safetensors").items()
    }


def evaluating(config: Config, bench: Bench) -> list[dict[str, Any]]:
    """What lm-eval's evaluate is called with, a dictionary for each model and sampling."""
    run, calls = RunDir(bench.new), []
    run.merged.symlink_to(bench.tiny)

    def record(lm: Any, tasks: Any, **options: Any) -> dict[str, Any]:
        calls.append({"lm": lm, "tasks": tasks["tasks"], **options})
        return {"results": {}, "samples": {}, "configs": {}}

    with bench.patch.context() as patched, patch.dict(os.environ):
        patched.setattr(evaluator, "evaluate", record)
        evaluate.run(config, run, resolve(config))
    return calls


def of_evaluation(observe: Callable[[list[dict[str, Any]]], Any]) -> Probe:
    return lambda config, bench: observe(evaluating(config, bench))


def asked(name: str) -> Probe:
    return of_evaluation(lambda calls: calls[0][name])


def of_task(name: str, task: str = "demo_category") -> Probe:
    return of_evaluation(lambda calls: calls[0]["tasks"][task].get_config(name))


def drawn(name: str) -> Probe:
    """Of the generation arguments of a task that generates."""
    return of_evaluation(lambda calls: calls[0]["tasks"]["other"].get_config("generation_kwargs").get(name))


def known_tasks(config: Config, bench: Bench) -> list[str]:
    return sorted(build_tasks(config.benchmark).all_tasks)


def generating(config: Config, bench: Bench) -> list[dict[str, Any]]:
    """What the model's generate is called with, a dictionary for each prompt and model."""
    run, calls = RunDir(bench.new), []
    run.merged.symlink_to(bench.tiny)

    def record(self: Any, **options: Any) -> Any:
        calls.append({**options, "input_ids": options["input_ids"].tolist()})
        return options["input_ids"]

    with bench.patch.context() as patched:
        patched.setattr(LlamaForCausalLM, "generate", record)
        generate.run(config, run, resolve(config))
    return calls


def of_generation(name: str) -> Probe:
    return lambda config, bench: [call.get(name) for call in generating(config, bench)]


def environment_of(name: str) -> Probe:
    def probe(config: Config, bench: Bench) -> str | None:
        with patch.dict(os.environ):
            set_up_tracking(config.tracking, bench.new)
            return os.environ.get(name)

    return probe


def looked_at(config: Config, bench: Bench) -> str | None:
    found = objective_of(config, {"train/loss": 2.0, "train/seconds": 3.0})
    return found.name if found else None


def swept(config: Config, *words: str) -> DictConfig:
    """The configuration of a sweep with these words, as Hydra hands it to the sweeper."""
    typed = [
        f"sweep.zip=[{','.join(config.sweep.zip)}]", f"sweep.seeds={config.sweep.seeds or 'null'}",
        f"sweep.reuse={config.sweep.reuse}", f"sweep.direction={config.sweep.direction}", "model=local",
        f"model.name_or_path={config.model.name_or_path}", "quantization=none", f"data.path={config.data.path}", *words,
    ]  # fmt: skip
    return config_loader(None).load_configuration("config", typed, RunMode.MULTIRUN)


def jobs_of_a_grid(config: Config, bench: Bench) -> list[list[str]]:
    """What the sweeper asks the launcher to start."""
    sweeper, asked = GridSweeper(), []
    sweeper.config = swept(config)
    sweeper.hydra_context = HydraContext(config_loader=config_loader(None), callbacks=Callbacks())
    sweeper.launcher = SimpleNamespace(launch=lambda jobs, first: asked.extend(jobs) or [])
    sweeper.sweep(["lora.r=4,8", "lora.lora_alpha=16,32"])
    return asked


def planned_sweep(config: Config, *words: str) -> Plan:
    return planned(config_loader(None), swept(config, *words), [[*words]])


def taken_over(config: Config, bench: Bench) -> bool:
    return planned_sweep(config).reuse


def best_of_a_sweep(config: Config, bench: Bench) -> bool | None:
    return least_is_best("merged/mine/score", planned_sweep(config).info["direction"])


PREPARE = {"run_dir": "NEW/run", "cache_dir": "NEW/cache", "stages": ["prepare"]}
HELD_OUT = {"data.validation_share": 0.5}
NF4, INT8 = {"quantization.kind": "nf4"}, {"quantization.kind": "int8"}
QLORA = {**NF4, "cache_dir": "NEW/cache"}
HUB = {"model.name_or_path": "some/model"}
GGUF = {"model.name_or_path": "FILES/gguf", "model.gguf_file": "a.gguf"}
TASKS = {"benchmark.tasks": ["demo_category"], "benchmark.include_path": "FILES/tasks", "benchmark.models": ["base"]}
GENERATES = {**TASKS, "benchmark.tasks": ["other"]}
PROMPTS = {"generate.prompts": ["What is fern?"]}
WANDB = {"tracking.kind": "wandb"}

EFFECTS = {
    "name": Effect("run", "otter", folder_name),
    "seed": Effect(42, 7, sft("seed"), same=True),
    "run_dir": Effect("NEW/one", "NEW/two", written("config.yaml"), {**PREPARE}),
    "cache_dir": Effect("NEW/one", "NEW/two", root_of_tokens, {**PREPARE}),
    "trust": Effect(False, True, code_of_a_saved_run),
    "objective": Effect("train/loss", "train/seconds", looked_at),
    "sweep.zip": Effect([], ["lora.r", "lora.lora_alpha"], jobs_of_a_grid),
    "sweep.seeds": Effect(None, 2, jobs_of_a_grid),
    "sweep.reuse": Effect(False, True, taken_over),
    "sweep.direction": Effect("maximize", "minimize", best_of_a_sweep),
    "stages": Effect([], ["prepare"], written("receipts/*.json"), {**PREPARE}),
    "model.name_or_path": Effect("some/model", "some/other", lambda config, bench: locate(config.model, bench.new)),
    "model.revision": Effect(None, "main", of_loading("revision", both=True), HUB),
    "model.package": Effect(
        "effects_one", "effects_two", lambda config, bench: gguf_path(config.model).parent.name,
        {"model.name_or_path": None, "model.gguf_file": "a.gguf"},
    ),
    "model.gguf_file": Effect("a.gguf", "b.gguf", lambda config, bench: locate(config.model, bench.new)[1], GGUF),
    "model.dtype": Effect("float32", "bfloat16", of_loading("dtype")),
    "model.attn_implementation": Effect("sdpa", "eager", of_loading("attn_implementation"), same=True),
    "model.device_map": Effect(None, "auto", of_loading("device_map"), same=True),
    "model.chat_template": Effect(None, "FILES/mine.jinja", rendered),
    "model.chat_template_kwargs": Effect({}, {"tone": "dry"}, rendered, {"model.chat_template": "FILES/tone.jinja"}),
    "model.trust_remote_code": Effect(False, True, of_loading("trust_remote_code", both=True)),
    "model.add_tokens": Effect([], ["<|think|>"], lambda config, bench: len(load_tokenizer(config.model, bench.tiny))),
    "model.extra": Effect({}, {"variant": "fp16"}, of_loading("variant")),
    "quantization.kind": Effect("nf4", "fp4", of_quantization("bnb_4bit_quant_type"), same=True),
    "quantization.bnb_4bit_use_double_quant": Effect(
        False, True, of_quantization("bnb_4bit_use_double_quant"), NF4, same=True
    ),
    "quantization.bnb_4bit_compute_dtype": Effect(
        "float32", "bfloat16", of_quantization("bnb_4bit_compute_dtype"), NF4
    ),
    "quantization.bnb_4bit_quant_storage": Effect("uint8", "bfloat16", of_quantization("bnb_4bit_quant_storage"), NF4),
    "quantization.llm_int8_threshold": Effect(6.0, 4.5, of_quantization("llm_int8_threshold"), INT8, same=True),
    "quantization.llm_int8_skip_modules": Effect(
        None, ["lm_head"], of_quantization("llm_int8_skip_modules"), NF4, same=True
    ),
    "quantization.extra": Effect(
        {}, {"llm_int8_has_fp16_weight": True}, of_quantization("llm_int8_has_fp16_weight"), INT8
    ),
    "lora.kind": Effect("none", "lora", lambda config, bench: lora.build_lora(config.lora) is None),
    "lora.r": Effect(16, 8, of_lora("r"), same=True),
    "lora.lora_alpha": Effect(32, 16, of_lora("lora_alpha"), same=True),
    "lora.lora_dropout": Effect(0.0, 0.1, of_lora("lora_dropout"), same=True),
    "lora.target_modules": Effect("all-linear", ["q_proj"], of_lora("target_modules"), same=True),
    "lora.bias": Effect("none", "all", of_lora("bias"), same=True),
    "lora.use_rslora": Effect(False, True, of_lora("use_rslora"), same=True),
    "lora.use_dora": Effect(False, True, of_lora("use_dora"), same=True),
    "lora.init_lora_weights": Effect(True, "gaussian", of_lora("init_lora_weights"), same=True),
    "lora.loraplus_lr_ratio": Effect(None, 16.0, learning_rates),
    "lora.trainable_token_indices": Effect(None, [3, 5], of_lora("trainable_token_indices"), same=True),
    "lora.modules_to_save": Effect(None, ["lm_head"], of_lora("modules_to_save"), same=True),
    "lora.layers_to_transform": Effect(
        None, [0], of_lora("layers_to_transform"), {"lora.target_modules": ["q_proj"]}, same=True
    ),
    "lora.rank_pattern": Effect({}, {"q_proj": 4}, of_lora("rank_pattern"), same=True),
    "lora.alpha_pattern": Effect({}, {"q_proj": 4}, of_lora("alpha_pattern"), same=True),
    "lora.extra": Effect({}, {"exclude_modules": ["lm_head"]}, of_lora("exclude_modules")),
    "data.path": Effect("FILES/rows.jsonl", "FILES/splits/test.jsonl", rows_of),
    "data.split": Effect("train", "test", rows_of, {"data.path": "FILES/splits"}),
    "data.name": Effect("one", "two", asked_of_the_hub, {"data.path": "some/rows"}),
    "data.revision": Effect("main", "v2", asked_of_the_hub, {"data.path": "some/rows"}),
    "data.format": Effect("auto", "alpaca", rows_of),
    "data.columns": Effect({}, {"messages": "turns"}, rows_of),
    "data.mix": Effect(
        [{"path": "FILES/rows.jsonl"}], [{"path": "FILES/rows.jsonl", "max_rows": 1}], rows_of, {"data.path": None}
    ),
    "data.validation_path": Effect(None, "FILES/splits/test.jsonl", tokens_of),
    "data.validation_split": Effect(None, "test", tokens_of, {"data.path": "FILES/splits"}),
    "data.validation_share": Effect(None, 0.5, tokens_of),
    "data.on_long_row": Effect("cut", "error", tokens_of, {"trainer.max_length": 40}),
    "data.on_bad_row": Effect("error", "skip", tokens_of, {"data.path": "FILES/bad.jsonl"}),
    "data.max_bad_share": Effect(
        0.01, 0.9, tokens_of, {"data.path": "FILES/bad.jsonl", "data.on_bad_row": "skip"}
    ),
    "data.packing": Effect(False, True, tokens_of),
    "data.padding_free": Effect(False, True, lines_of_a_batch),
    "data.formatter": Effect(None, "effects_code:shout", rows_of),
    "data.loss": Effect("assistant", "all", tokens_of),
    "data.max_rows": Effect(None, 2, rows_of),
    "data.shuffle_seed": Effect(None, 1, tokens_of),
    "trainer.max_length": Effect(512, 40, tokens_of),
    "trainer.max_steps": Effect(-1, 5, sft("max_steps"), same=True),
    "trainer.num_train_epochs": Effect(1.0, 2.0, sft("num_train_epochs"), same=True),
    "trainer.per_device_train_batch_size": Effect(2, 4, sft("per_device_train_batch_size"), same=True),
    "trainer.per_device_eval_batch_size": Effect(8, 4, sft("per_device_eval_batch_size"), HELD_OUT, same=True),
    "trainer.eval_steps": Effect(None, 5, sft("eval_steps"), HELD_OUT, same=True),
    "trainer.gradient_accumulation_steps": Effect(1, 2, sft("gradient_accumulation_steps"), same=True),
    "trainer.learning_rate": Effect(2e-4, 1e-3, sft("learning_rate"), same=True),
    "trainer.lr_scheduler_type": Effect("cosine", "linear", sft("lr_scheduler_type"), same=True),
    "trainer.warmup_steps": Effect(0.0, 0.1, sft("warmup_steps"), same=True),
    "trainer.weight_decay": Effect(0.0, 0.1, sft("weight_decay"), same=True),
    "trainer.max_grad_norm": Effect(1.0, 0.3, sft("max_grad_norm"), same=True),
    "trainer.optim": Effect("auto", "sgd", sft("optim")),
    "trainer.precision": Effect("float32", "bfloat16", sft("bf16")),
    "trainer.lean_loss": Effect(True, False, lambda config, bench: built_trainer(config, bench).lean, {"lora.kind": "lora"}),
    "trainer.torch_compile": Effect(False, True, sft("torch_compile"), same=True),
    # on a machine without CUDA it is refused, so the settled hardware is that of a run without it
    "trainer.fsdp": Effect(
        False, True, lambda config, _: bool(trainer.build_trainer_args(config, resolve(Config()), Path("out")).fsdp)
    ),
    "trainer.load_best_model_at_end": Effect(
        False, True, sft("load_best_model_at_end"), {**HELD_OUT, "trainer.eval_steps": 500}, same=True
    ),
    "trainer.early_stopping_patience": Effect(
        None, 3,
        lambda config, bench: [vars(one)["early_stopping_patience"] for one in trainer.load_callbacks(config.trainer)],
        {**HELD_OUT, "trainer.eval_steps": 100},
    ),
    "trainer.gradient_checkpointing": Effect(False, True, sft("activation_checkpointing"), same=True),
    "trainer.logging_steps": Effect(1, 10, sft("logging_steps"), same=True),
    "trainer.save_steps": Effect(500, 10, sft("save_steps"), same=True),
    "trainer.save_total_limit": Effect(2, 1, sft("save_total_limit"), same=True),
    "trainer.callbacks": Effect(
        [], ["effects_code:Watcher"],
        lambda config, bench: [type(one).__name__ for one in trainer.load_callbacks(config.trainer)],
    ),
    "trainer.extra": Effect({}, {"adam_beta1": 0.8}, sft("adam_beta1")),
    "merge.base": Effect("dequantized", "original", merged(weights), {**QLORA, "merge.verify": False}),
    "merge.method": Effect("stream", "peft", merges_with_peft, {**QLORA, "merge.verify": False}),
    "merge.dtype": Effect("float32", "bfloat16", merged(weights), {**QLORA, "merge.verify": False}),
    "merge.verify": Effect(True, False, merged(lambda run: (run.root / "merge_report.json").exists()), QLORA),
    "merge.tolerance": Effect(
        None, 1e-12, merged(lambda run: "within the tolerance"), {**QLORA, "merge.dtype": "bfloat16"}
    ),
    "benchmark.tasks": Effect(
        ["demo_category"], ["demo_category", "other"], of_evaluation(lambda calls: sorted(calls[0]["tasks"])), TASKS,
        same=True,
    ),
    "benchmark.include_path": Effect("demo", "FILES/tasks", known_tasks, TASKS),
    "benchmark.own_tasks": Effect(
        {}, {"mine": {"kind": "multiple_choice", "path": "demo"}}, lambda config, bench: [
            task.task_name for task in build_own_tasks(config.benchmark)
        ], {**TASKS, "benchmark.tasks": ["demo_category", "mine"]},
    ),
    "benchmark.limit": Effect(None, 5, asked("limit"), TASKS, same=True),
    "benchmark.num_fewshot": Effect(0, 2, of_task("num_fewshot"), TASKS, same=True),
    "benchmark.fewshot_as_multiturn": Effect(True, False, asked("fewshot_as_multiturn"), TASKS, same=True),
    "benchmark.apply_chat_template": Effect(True, False, asked("apply_chat_template"), TASKS, same=True),
    "benchmark.system_instruction": Effect(None, "Be brief.", asked("system_instruction"), TASKS, same=True),
    "benchmark.gen_kwargs": Effect({}, {"max_gen_toks": 9}, drawn("max_gen_toks"), GENERATES),
    "benchmark.repeats": Effect(1, 3, of_evaluation(len), GENERATES, same=True),
    "benchmark.seed": Effect(1234, 7, of_evaluation(lambda calls: calls[0]["lm"].sampling[0]), TASKS, same=True),
    "benchmark.batch_size": Effect(8, 3, of_evaluation(lambda calls: calls[0]["lm"].size), TASKS, same=True),
    "benchmark.models": Effect(["base"], ["base", "merged"], of_evaluation(len), TASKS),
    "benchmark.confirm_run_unsafe_code": Effect(False, True, asked("confirm_run_unsafe_code"), TASKS, same=True),
    "generate.prompts": Effect(["What is fern?"], ["What is fern?", "And otter?"], of_generation("input_ids")),
    "generate.file": Effect(None, "FILES/prompts.txt", of_generation("input_ids"), PROMPTS),
    "generate.models": Effect(["base"], ["base", "merged"], of_generation("max_new_tokens"), PROMPTS),
    "generate.batch_size": Effect(8, 1, of_generation("max_new_tokens"), {"generate.prompts": ["One?", "Two?"]}),
    "generate.stream": Effect(False, True, lambda config, bench: [
        call.get("streamer") is not None for call in generating(config, bench)
    ], PROMPTS),
    "generate.apply_chat_template": Effect(True, False, of_generation("input_ids"), PROMPTS),
    "generate.max_new_tokens": Effect(64, 3, of_generation("max_new_tokens"), PROMPTS),
    "generate.do_sample": Effect(False, True, of_generation("do_sample"), PROMPTS),
    "generate.temperature": Effect(1.0, 0.7, of_generation("temperature"), {**PROMPTS, "generate.do_sample": True}),
    "generate.top_k": Effect(50, 5, of_generation("top_k"), {**PROMPTS, "generate.do_sample": True}),
    "generate.top_p": Effect(1.0, 0.9, of_generation("top_p"), {**PROMPTS, "generate.do_sample": True}),
    "tracking.kind": Effect("off", "wandb", sft("report_to")),
    "tracking.project": Effect("hydratune", "nouns", environment_of("WANDB_PROJECT"), WANDB, same=True),
    "tracking.mode": Effect("online", "offline", environment_of("WANDB_MODE"), WANDB, same=True),
}  # fmt: skip
# keys that have a single value so far, so that there is nothing to tell apart
ONE_VALUE = {"trainer.kind": "sft"}


@pytest.fixture(scope="module")
def files(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny/, adapter/ for it, mine.jinja, tone.jinja, rows in a file and in splits/, gguf/, tasks/, and Python packages."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "tiny").symlink_to(tiny)
    (folder / "effects_code.py").write_text(CODE)
    for package in ("effects_one", "effects_two"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
        (folder / package / "a.gguf").touch()
    (folder / "mine.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    (folder / "tone.jinja").write_text("{{ tone }}{% for message in messages %}{{ message['content'] }}{% endfor %}")
    (folder / "prompts.txt").write_text("And otter?\n")
    (folder / "gguf").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (folder / "gguf" / name).write_text(name)

    def row(question: str, answer: str) -> dict[str, Any]:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": turns, "turns": [{"role": "user", "content": "Again?"}, turns[1]]}

    def put_rows(path: Path, nouns: list[str]) -> None:
        path.parent.mkdir(exist_ok=True)
        lines = [json.dumps(row(f"What is {noun} of the river?", f"The {noun} is a teacher.")) for noun in nouns]
        path.write_text("\n".join(lines))

    nouns = ["otter", "fern", "bread", "violin", "harbour", "shoulder"]
    put_rows(folder / "rows.jsonl", nouns)
    put_rows(folder / "splits/train.jsonl", nouns[:2])
    (folder / "bad.jsonl").write_text((folder / "rows.jsonl").read_text() + '\n{"messages": []}\n')
    put_rows(folder / "splits/test.jsonl", nouns[2:])
    (folder / "tasks").mkdir()
    for name in ("task.py", "test.jsonl", "demo_category.yaml"):
        shutil.copy(DEMO / name, folder / "tasks")
    other = {
        "task": "other", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(DEMO / "test.jsonl")}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    (folder / "tasks" / "other.yaml").write_text(yaml.safe_dump(other))

    torch.manual_seed(0)
    adapter = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:  # zero at first, which would merge to the base
            torch.nn.init.normal_(parameter, std=0.02)
    adapter.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def bench(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.syspath_prepend(str(files))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # auto settles the same everywhere
    monkeypatch.chdir(tmp_path)
    return Bench(files, tmp_path, monkeypatch)


def configured(effect: Effect, key: str, value: Any, bench: Bench) -> Config:
    """A sound configuration, the key at `value`."""

    def filled(one: Any) -> Any:
        if isinstance(one, str):
            return one.replace("FILES", str(bench.files)).replace("NEW", str(bench.new))
        if isinstance(one, dict):
            return {name: filled(part) for name, part in one.items()}
        return [filled(part) for part in one] if isinstance(one, list) else deepcopy(one)

    config = Config()
    base = {"model.name_or_path": "FILES/tiny", "data.path": "FILES/rows.jsonl", "lora.kind": "lora"}
    for name, one in {**base, **effect.given, key: value}.items():
        put(config, name, filled(one))
    assert value_problems(config) == {} and broken_rules(config) == []  # else it is refused before it could act
    return config


def test_every_key_is_in_the_table() -> None:
    assert EFFECTS.keys() | ONE_VALUE.keys() == schema_keys().keys()
    assert not EFFECTS.keys() & ONE_VALUE.keys()


@pytest.mark.parametrize("key", EFFECTS)
def test_another_value_has_another_effect(key: str, bench: Bench, tmp_path: Path) -> None:
    effect, seen = EFFECTS[key], []
    for number, value in enumerate([effect.first, effect.second, effect.first]):
        bench.new = tmp_path / str(number)
        bench.new.mkdir()
        bench.patch.chdir(bench.new)
        seen.append(effect.probe(configured(effect, key, value, bench), bench))
    assert seen[0] == seen[2], "the probe sees something besides the key"
    assert seen[0] != seen[1], f"{key} changes nothing that its probe sees"
    if effect.same:
        assert seen[:2] == [effect.first, effect.second]


@pytest.mark.parametrize("key", EFFECTS)
def test_what_is_trained_decides_the_hash(key: str, bench: Bench) -> None:
    one, other = (
        config_hash(configured(EFFECTS[key], key, v, bench)) for v in (EFFECTS[key].first, EFFECTS[key].second)
    )
    assert (one != other) == (key.partition(".")[0] not in FREE)


@pytest.mark.parametrize("key", ONE_VALUE)
def test_a_key_with_one_value_takes_no_other(key: str) -> None:
    _, known = schema_keys()[key]
    assert known.metadata["choices"] == (ONE_VALUE[key],)
    assert value_problem(key, ONE_VALUE[key]) is None
    assert value_problem(key, "dpo") is not None


def test_the_cache_is_found_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYDRATUNE_CACHE", str(tmp_path))
    assert cache_dir(Config()) == tmp_path


# each name that we pass is one of the installed library's: some of them take any name, and drop those they don't know


def passed(module: Any, name: str, build: Callable[[], object], bench: Bench) -> set[str]:
    """The names that `build` calls `module.name` with."""
    names: set[str] = set()

    class Stop(Exception):
        pass

    def record(**options: Any) -> None:
        names.update(options)
        raise Stop

    with bench.patch.context() as patched, suppress(Stop):
        patched.setattr(module, name, record)
        build()
    assert names
    return names


def keywords(function: Any) -> set[str]:
    return {name for name, one in inspect.signature(function).parameters.items() if one.kind != one.VAR_KEYWORD}


def popped(function: Any) -> set[str]:
    """Names that a function takes out of its **kwargs."""
    return set(re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(function)))


def test_names_of_sftconfig(bench: Bench) -> None:
    config = Config()
    names = passed(trainer, "SFTConfig", lambda: trainer.build_trainer_args(config, resolve(config), Path(".")), bench)
    assert names <= {one.name for one in fields(SFTConfig)}
    typed = {one.name for one in fields(config.trainer)}
    ours = {  # settled, or not SFTConfig's
        "kind", "optim", "precision", "gradient_checkpointing", "callbacks", "extra", "lean_loss",
        "early_stopping_patience", "fsdp",
    }  # fmt: skip
    assert typed - ours <= names


def test_names_of_loraconfig(bench: Bench) -> None:
    conf = Config().lora
    conf.kind = "lora"
    names = passed(lora, "LoraConfig", lambda: lora.build_lora(conf), bench)
    assert names <= {one.name for one in fields(LoraConfig)}
    assert names == {one.name for one in fields(conf)} - {"kind", "extra", "loraplus_lr_ratio"} | {"task_type"}


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_names_of_bitsandbytesconfig(kind: str, bench: Bench) -> None:
    conf = Config().quantization
    conf.kind = kind
    build = lambda: quantization.build_quantization(conf, "float32")  # noqa: E731
    assert passed(quantization, "BitsAndBytesConfig", build, bench) <= keywords(BitsAndBytesConfig)


def test_names_of_from_pretrained(bench: Bench) -> None:
    model, tokenizer = loading(configured(EFFECTS["model.revision"], "model.revision", "main", bench), bench)
    taken = keywords(PreTrainedModel.from_pretrained) | popped(PreTrainedModel.from_pretrained)
    assert model.keys() <= taken
    assert "no_such_name" not in taken
    assert tokenizer.keys() <= keywords(PreTrainedTokenizerBase.from_pretrained)


def test_names_of_lm_eval(bench: Bench) -> None:
    (call,) = evaluating(configured(EFFECTS["benchmark.limit"], "benchmark.limit", 5, bench), bench)
    assert call.keys() - {"lm", "tasks"} <= keywords(evaluator.evaluate)


def test_names_of_generate(bench: Bench) -> None:
    effect = EFFECTS["generate.temperature"]
    call = generating(configured(effect, "generate.temperature", 0.7, bench), bench)[0]
    inputs = {"input_ids", "attention_mask", "token_type_ids"}  # what the tokenizer gives
    assert call.keys() - inputs <= vars(GenerationConfig()).keys() | keywords(LlamaForCausalLM.generate)
    assert {"max_new_tokens", "do_sample", "temperature", "top_k", "top_p"} <= call.keys()
