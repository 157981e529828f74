"""Train with trl's SFTTrainer on the prepared tokens; goes on from the last checkpoint."""

import json
import math
import shutil
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from peft import prepare_model_for_kbit_training
from transformers import TrainerCallback, set_seed

from hydratune.build.blueprint import as_saved, blueprint_of, float32_of, skeleton
from hydratune.build.collate import Collator, separates
from hydratune.build.endings import end_answers, stop_token
from hydratune.build.hardware import Hardware
from hydratune.build.lora import build_lora
from hydratune.build.model import load_model, load_tokenizer
from hydratune.build.quantization import quantized_modules
from hydratune.build.source import model_source
from hydratune.build.tokens import open_tokens
from hydratune.build.tracking import finish_tracking, set_up_tracking
from hydratune.build.trainer import Trainer, build_trainer_args, load_callbacks
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, RunError
from hydratune.run.console import on_terminal, progress, say
from hydratune.run.layout import RunDir, write_json
from hydratune.run.signals import SAVED, handled
from hydratune.run.train_log import append_log, cut_log

SECONDS_A_LINE = 15  # on a screen that is no terminal


class _Progress(TrainerCallback):
    """train_log.jsonl and the screen, each step once; a signal saves at the end of the step."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.signal = run, 0
        self.first, self.began, self.shown = 0, time.monotonic(), 0.0
        self.before = 0.0  # seconds that earlier attempts at the same steps took

    @property
    def seconds(self) -> float:
        """Of training up to now, with the attempts that were stopped."""
        return self.before + time.monotonic() - self.began

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        done, total = state.global_step, state.max_steps
        if logs and "eval_loss" in logs:
            append_log(self.run.train_log, {"step": done, "eval_loss": logs["eval_loss"]})
            say(f"  step {done}/{total}  validation loss {logs['eval_loss']:.4f}")
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise RunError(
                f"The loss is {logs['loss']} at step {done}: lower trainer.learning_rate, in another run_dir."
            )
        entry = {"step": done, **logs, "seconds": round(self.seconds, 2)}
        if done - self.first < args.logging_steps and self.first % args.logging_steps:
            entry["since"] = self.first  # the trainer forgets the losses of a window that a stop has cut
        append_log(self.run.train_log, entry)
        now = time.monotonic()
        if on_terminal() or done == total or now - self.shown >= SECONDS_A_LINE:
            self.shown = now
            pace = (now - self.began) / max(1, done - self.first)  # seconds a step
            left = timedelta(seconds=round(pace * (total - done)))
            progress(done, total, f"loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  {left} left")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first, self.began = state.global_step, time.monotonic()
        self.before = cut_log(self.run.train_log, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.signal:
            control.should_save = control.should_training_stop = True

    def handle(self, number: int, _frame: Any) -> None:
        if self.signal and number == signal.SIGINT:
            sys.exit(130)
        self.signal = number


def build_trainer(config: Config, run: RunDir, hardware: Hardware) -> Trainer:
    """The model in its settled form, in a trainer that has not started."""
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
    collator = _collator(config, hardware, tokenizer.pad_token_id)
    trainer = Trainer(
        model=model,
        args=build_trainer_args(config, hardware, run.checkpoints),
        data_collator=collator,
        train_dataset=prepared.training,
        eval_dataset=prepared.validation,
        processing_class=tokenizer,
        peft_config=build_lora(config.lora),
        callbacks=load_callbacks(config.trainer),
    )
    with trainer.accelerator.autocast():  # of a model whose parts have different types
        if collator.separate and not separates(cast(torch.nn.Module, trainer.model), collator):
            raise RunError(
                f"In this model, with attention {hardware.attn_implementation}, packed rows see one another: set "
                "data.packing=false and data.padding_free=false."
            )
    if hardware.precision != "bfloat16":
        # trl casts the adapter of a quantized model to bfloat16 whatever the precision is; fp16's loss
        # scaling needs float32 weights, and float32 training should keep what it learns
        for parameter in cast(torch.nn.Module, trainer.model).parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
    return trainer


def _collator(config: Config, hardware: Hardware, pad_token_id: int) -> Collator:
    packing, padding_free = config.data.packing, config.data.padding_free
    one_line = padding_free or (packing and hardware.attn_implementation == "flash_attention_2")
    return Collator(pad_token_id, separate=packing or padding_free, flatten=one_line)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole one. The trainer writes trainer_state.json last, so one without it was cut off: removed."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text())
            for name in ("optimizer.pt", "scheduler.pt"):  # without them training would begin anew, silently
                (path / name).stat()
        except (OSError, json.JSONDecodeError):
            say(f"  {path.name} was cut off while it was written: removed")
            shutil.rmtree(path)
        else:
            return path
    return None


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Writes adapter/ (or merged/ with lora=none). Metrics: last loss, steps, seconds a step."""
    trainer = build_trainer(config, run, hardware)
    watcher = _Progress(run)
    trainer.add_callback(watcher)
    last = last_checkpoint(run.checkpoints)
    if last:
        say(f"  going on from {last.name}")
    with handled(watcher.handle):
        result = trainer.train(resume_from_checkpoint=str(last) if last else None)
    state = trainer.state
    stopped = bool(watcher.signal) and state.global_step < state.max_steps
    validation = {}
    if trainer.eval_dataset is not None and not stopped:
        validation = {"train/validation_loss": _last_validation(trainer)}
    finish_tracking(config.tracking)
    if stopped:
        say(f"  {signal.Signals(watcher.signal).name}: saved at step {state.global_step}; the same command goes on")
        sys.exit(SAVED)
    target = run.merged if config.lora.kind == "none" else run.adapter
    trainer.save_model(str(target))
    cast(Any, trainer.processing_class).save_pretrained(target)
    if config.lora.kind == "none":  # else merge does it
        end_answers(target, stop_token(trainer.processing_class))
    losses = [row["loss"] for row in state.log_history if "loss" in row]
    return {
        "train/loss": losses[-1] if losses else result.training_loss,
        "train/steps": state.global_step,
        "train/seconds": round(watcher.seconds, 1),
        **validation,
    }


def _last_validation(trainer: Trainer) -> float:
    """The loss on the validation rows after the last step."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return float(entry["eval_loss"])
    return float(trainer.evaluate()["eval_loss"])
