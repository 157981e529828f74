"""conf/trainer -> trl.SFTConfig and the trainer that takes it."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from hydratune.build.hardware import Hardware
from hydratune.build.sockets import load_socket
from hydratune.config.schema import Config, ConfigError, TrainerConf


def load_callbacks(conf: TrainerConf) -> list[TrainerCallback]:
    """An instance of each class in `callbacks`. Raises ConfigError where one is no TrainerCallback."""
    found = []
    for named in conf.callbacks:
        kind = load_socket("trainer.callbacks", named)
        if not (isinstance(kind, type) and issubclass(kind, TrainerCallback)):
            raise ConfigError(f"trainer.callbacks={named} must be a class made from transformers.TrainerCallback.")
        try:
            found.append(kind())
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(f"trainer.callbacks={named}: {kind.__name__}() failed: {error}.") from error
    return found


class Trainer(SFTTrainer):
    """trl's, with a validation loss that is the mean over all supervised tokens.

    Its own is the mean of the batches' means, which depends on how the rows fall into batches, and so on packing.
    """

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Nats per supervised token; nothing of a batch is kept."""
        model = cast(torch.nn.Module, self.model)
        training = model.training
        model.eval()
        total, tokens = 0.0, 0
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs = self._prepare_inputs(batch)
            count = (inputs["labels"][:, 1:] != -100).sum()
            with self.compute_loss_context_manager():
                total += float(self.compute_loss(model, inputs, num_items_in_batch=count)) * int(count)
            tokens += int(count)
        metrics = {f"{metric_key_prefix}_loss": total / tokens}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        model.train(training)
        return metrics


def build_trainer_args(config: Config, hardware: Hardware, output_dir: Path) -> SFTConfig:
    """Arguments of SFTTrainer over rows that carry `input_ids` and `labels` already."""
    t = config.trainer
    return SFTConfig(
        output_dir=str(output_dir),
        run_name=config.name,
        seed=config.seed,
        max_length=t.max_length,
        max_steps=t.max_steps,
        num_train_epochs=t.num_train_epochs,
        per_device_train_batch_size=t.per_device_train_batch_size,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        learning_rate=t.learning_rate,
        lr_scheduler_type=t.lr_scheduler_type,
        warmup_steps=t.warmup_steps,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        optim=hardware.optim,
        bf16=hardware.precision == "bfloat16",
        fp16=hardware.precision == "float16",
        use_cpu=hardware.device == "cpu",
        # transformers' newer name for gradient checkpointing; the older one warns
        activation_checkpointing=t.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if t.gradient_checkpointing else None,
        logging_steps=t.logging_steps,
        logging_nan_inf_filter=False,  # a loss that is not finite stops the run, it is not averaged away
        save_steps=t.save_steps,
        save_total_limit=t.save_total_limit,
        eval_strategy="steps" if t.eval_steps else "no",
        eval_steps=t.eval_steps,
        per_device_eval_batch_size=t.per_device_eval_batch_size,
        prediction_loss_only=True,  # kept logits would grow with the rows times the vocabulary
        remove_unused_columns=False,  # the collator reads the lengths of packed rows
        report_to=["wandb"] if config.tracking.kind == "wandb" else [],
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        **t.extra,
    )
