"""Train with trl's SFTTrainer on the prepared tokens; goes on from the last checkpoint."""

import signal
import sys
from functools import partial
from typing import Any, cast

import torch
from peft import prepare_model_for_kbit_training
from transformers import set_seed

from hydratune.build.adapter import keep_vocabulary
from hydratune.build.blueprint import as_saved, blueprint_of, float32_of, skeleton
from hydratune.build.checkpoint_folder import step_of
from hydratune.build.collate import Collator
from hydratune.build.endings import end_answers, stop_token
from hydratune.build.failures import disk_errors, memory_errors
from hydratune.build.hardware import Hardware
from hydratune.build.identity import of_run
from hydratune.build.lora import build_lora, complete_head, rows_of_added
from hydratune.build.malloc import keep_freed_memory
from hydratune.build.model import added_ids, load_model, load_tokenizer
from hydratune.build.pissa import as_plain_lora, is_pissa, start_from_pissa
from hydratune.build.progress import Progress
from hydratune.build.quantization import quantized_modules
from hydratune.build.source import model_source
from hydratune.build.tokens import open_tokens
from hydratune.build.tracking import finish_tracking, set_up_tracking
from hydratune.build.trainer import Trainer, build_trainer_args, load_callbacks
from hydratune.build.units import packed
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config
from hydratune.run.console import progress, say
from hydratune.run.layout import RunDir, write_atomically, write_json
from hydratune.run.signals import SAVED, handled
from hydratune.run.train_log import append_log, cut_log


def build_trainer(config: Config, run: RunDir, hardware: Hardware) -> Trainer:
    """The model in its settled form, in a trainer that has not started."""
    if hardware.device == "cpu":
        keep_freed_memory()
    set_seed(config.seed)
    set_up_tracking(config.tracking, run.root)
    cache = cache_dir(config)
    source = model_source(config.model, cache)
    tokenizer = load_tokenizer(config.model, source)
    prepared = open_tokens(run.prepared, config.data, tokenizer, config.trainer.max_length, cache)
    model = load_model(config.model, source, hardware, config.quantization)
    plain = skeleton(model.config, config.model.trust_remote_code)  # for quantized layers no longer tell what they were
    facts = {"blueprint": as_saved(blueprint_of(plain)), "float32": float32_of(plain, getattr(torch, hardware.dtype))}
    write_json(run.model, {**facts, "stop": stop_token(tokenizer)})
    if config.quantization.kind != "none":
        write_json(run.quantized, {"modules": quantized_modules(model)})
        # the trainer switches checkpointing on itself
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    trainer = Trainer(
        model=model,
        args=build_trainer_args(config, hardware, run.checkpoints),
        data_collator=Collator(cast(Any, tokenizer).pad_token_id),  # until settle has chosen
        train_dataset=prepared.training,
        eval_dataset=prepared.validation,
        processing_class=tokenizer,
        peft_config=build_lora(config.lora, rows_of_added(config.lora, plain, added_ids(config.model, source))),
        callbacks=load_callbacks(config.trainer),
    )
    if config.lora.kind != "none":
        complete_head(trainer.model)
    if is_pissa(config.lora):
        start_from_pissa(cast(Any, trainer.model), config.lora.init_lora_weights, run.root / "pissa_init")
    if hardware.precision != "bfloat16":
        # trl casts the adapter of a quantized model to bfloat16 whatever the precision is; fp16's loss
        # scaling needs float32 weights, and float32 training should keep what it learns
        for parameter in cast(torch.nn.Module, trainer.model).parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
    trainer.of_run = of_run(config, hardware, source, model, tokenizer, prepared.folder.name)
    trainer.sources = prepared.report["training"]["sources"]
    trainer.validation_rows = " ".join(map(str, prepared.report["files"].get("validation.arrow", [])))
    trainer.failure = run.checkpoints.parent / "failure"  # of all processes, as the checkpoints are
    trainer.watch(Progress(partial(append_log, run.train_log), partial(cut_log, run.train_log), progress, say))
    trainer.settle(config, hardware)
    say(f"  batches {trainer.batches.name}, loss of {'supervised tokens alone' if trainer.lean else 'all tokens'}")
    return trainer


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Writes adapter/ (or merged/ with lora=none). Metrics: last loss, steps, seconds a step."""
    with memory_errors(config), disk_errors(run.root):
        return _run(config, run, hardware)


def _run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    trainer = build_trainer(config, run, hardware)
    last = trainer.go_on(say)
    with handled(trainer.progress.handle):
        result = trainer.train(resume_from_checkpoint=last)
    state = trainer.state
    # also of a signal that found no further step to prevent: the stages that come next are not to run
    leaves = trainer.asked_to_stop()
    validation = {}
    if trainer.eval_dataset is not None and not leaves:
        validation = {"train/validation_loss": _write_validation(trainer, run)}
    finish_tracking(config.tracking)
    if not trainer.stopped:
        _save(trainer, config, run)
    if leaves:
        asked = trainer.progress.signal
        by = signal.Signals(asked).name if asked else "a signal to another process"
        say(f"  {by}: saved at step {state.global_step}; the same command goes on")
        sys.exit(SAVED)
    losses = [row["loss"] for row in state.log_history if "loss" in row]
    return {
        "train/loss": losses[-1] if losses else result.training_loss,
        "train/steps": state.global_step,
        "train/seconds": round(trainer.progress.seconds, 1),
        **validation,
    }


def _save(trainer: Trainer, config: Config, run: RunDir) -> None:
    """What was trained, and the tokenizer."""
    target = run.merged if config.lora.kind == "none" else run.adapter
    trainer.save_model(str(target))
    if not trainer.is_world_process_zero():
        return
    cast(Any, trainer.processing_class).save_pretrained(target)
    if config.lora.kind == "none":  # else merge does it
        end_answers(target, stop_token(trainer.processing_class))
        return
    keep_vocabulary(trainer.model, target, added_ids(config.model, model_source(config.model, cache_dir(config))))
    if is_pissa(config.lora):
        as_plain_lora(target, run.root / "pissa_init")


def _write_validation(trainer: Trainer, run: RunDir) -> float:
    """The validation loss, and on disk what it is the mean of."""
    loss = _last_validation(trainer)
    found = trainer.validated.get(_saved_step(trainer))
    if found is None:  # it was before the run was stopped, or of a checkpoint before that
        trainer.evaluate()
        found = trainer.validated[trainer.state.global_step]
    if trainer.is_world_process_zero():
        write_atomically(run.validation, packed({"train/validation_loss": found}))
    return loss


def _last_validation(trainer: Trainer) -> float:
    """The loss on the validation rows of the weights that are saved, which may be older than the lowest loss."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == _saved_step(trainer):
            return float(entry["eval_loss"])
    return float(trainer.evaluate()["eval_loss"])


def _saved_step(trainer: Trainer) -> int:
    """The step whose weights are saved."""
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return step_of(best) if best else trainer.state.global_step
