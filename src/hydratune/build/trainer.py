"""conf/trainer -> trl.SFTConfig and the trainer that takes it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig

from hydratune.build.batches import Batches, build_batches
from hydratune.build.checkpoints import CheckpointedTrainer
from hydratune.build.collate import IGNORED, NO_INPUTS, Counted, supervised
from hydratune.build.even import Filled, fill_up
from hydratune.build.hardware import Hardware
from hydratune.build.lean_loss import add_lean_loss, head_is_all
from hydratune.build.optimizer import LoraPlus
from hydratune.build.proofs import evaluating
from hydratune.build.proven import proven
from hydratune.build.sockets import load_socket
from hydratune.build.units import Units
from hydratune.config.schema import Config, ConfigError, RunError, TrainerConf

# FSDP2; not with its own activation checkpointing, which draws other dropout masks when layers run again
FSDP = {
    "version": 2, "reshard_after_forward": True, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "cpu_ram_efficient_loading": False, "state_dict_type": "FULL_STATE_DICT",
}  # fmt: skip


def load_callbacks(conf: TrainerConf) -> list[TrainerCallback]:
    """An instance of each class in `callbacks`, and early stopping. Raises ConfigError where one is no TrainerCallback."""
    patience = conf.early_stopping_patience
    found: list[TrainerCallback] = [EarlyStoppingCallback(patience)] if patience else []
    for named in conf.callbacks:
        kind = load_socket("trainer.callbacks", named)
        if not (isinstance(kind, type) and issubclass(kind, TrainerCallback)):
            raise ConfigError(f"trainer.callbacks={named} must be a class made from transformers.TrainerCallback.")
        if issubclass(kind, EarlyStoppingCallback):
            raise ConfigError(f"trainer.callbacks={named} has a key of its own: set trainer.early_stopping_patience.")
        try:
            found.append(kind())
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(f"trainer.callbacks={named}: {kind.__name__}() failed: {error}.") from error
    return found


class Trainer(LoraPlus, CheckpointedTrainer):
    """trl's, on rows that are tokens already, with the losses of build/lean_loss.py.

    Its own validation loss is the mean of the batches' means, which depends on how the rows fall into batches, and so
    on packing; here it is the mean over all supervised tokens.
    """

    batches: Batches
    proven = False  # that the model has a lean loss
    lean = False  # that it is the one trained by
    validation_rows = ""  # a digest of them

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # step -> what its validation loss is the mean of: of the last step, and of the lowest loss
        self.validated: dict[int, Units] = {}
        try:
            super().__init__(*args, **kwargs)
        except (ImportError, ValueError, AttributeError) as error:
            said = " ".join(str(error).split())
            raise ConfigError(f"trl refuses this training: {said[:300].rstrip('.')}.") from error

    def settle(self, config: Config, hardware: Hardware) -> None:
        """Choose how rows become batches and how their loss is computed: what is fastest and proven on this model.

        What was proven before of the same architecture and settings is not proven again.
        """
        self.loraplus_lr_ratio = config.lora.loraplus_lr_ratio
        network = cast(Any, self.model)
        pad = cast(Any, self.processing_class).pad_token_id
        known = proven(config, hardware, pad, network)
        with self.accelerator.autocast():  # of a model whose parts have different types
            self.batches = build_batches(config, hardware, pad, network, known)
            if head_is_all(network.config) and not config.trainer.fsdp:  # whose shards come after the proof
                add_lean_loss(cast(Any, network.get_base_model() if isinstance(network, PeftModel) else network))
                self.proven = known.answer("lean loss", (True, False), lambda: self.batches.lean_in(network))
            self.lean = self.proven and config.trainer.lean_loss and not self._another_loss()
            if not self.lean and not self._another_loss():
                known.answer("trl's loss", (True,), lambda: self._refuse_wrong_loss(network))
        if self.batches.seen is None or self.batches.seen.loss.isfinite():  # weights that are broken prove nothing
            known.keep()
        self.data_collator = cast(Any, Counted(self.batches.collator))

    def _another_loss(self) -> bool:
        """Whether more is asked for than the likelihood."""
        args = cast(SFTConfig, self.args)
        return args.loss_type != "nll" or args.label_smoothing_factor > 0 or self.aux_loss_enabled

    def _refuse_wrong_loss(self, network: Any) -> bool:
        """Raises RunError where trl's own loss, which knows some models' heads by name, is not that of the logits."""
        found = self.batches.look(network)
        batch, plain = found.batch, found.loss
        try:
            with torch.no_grad(), self.batches.attention(network), evaluating(network):
                loss = super().compute_loss(network, dict(batch))
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            loss = torch.tensor(math.nan)
            said = f" ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        else:
            said = ""
        for metrics in self._metrics.values():  # which trl counts as it goes
            metrics.clear()
        if not abs(float(loss) - float(plain)) <= 0.05 * abs(float(plain)):
            raise RunError(
                f"trl's loss is {float(loss):.4g} where the model's own logits give {float(plain):.4g}{said}: this model "
                "can't be trained in this way."
            )
        return True

    def get_train_dataloader(self) -> Any:
        """Of several processes, without a row that is trained on twice in an epoch."""
        if self.accelerator.num_processes == 1:
            return super().get_train_dataloader()
        rows, self.train_dataset = self.train_dataset, cast(Any, Filled(self.train_dataset))
        loader = super().get_train_dataloader()
        self.train_dataset = rows
        fill_up(loader, self.args.per_device_train_batch_size * self.accelerator.num_processes)
        return loader

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """As the trainer asks for the batches of a step: how many tokens they hold."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_tokens = sum(batch["tokens"] for batch in batches)
        self.step_supervised = sum(batch["supervised"] for batch in batches)
        return batches, count

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return cast(dict[str, Any], super()._prepare_inputs({k: v for k, v in inputs.items() if k not in NO_INPUTS}))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """With the attention of `batches` in the backward pass too, where checkpointed layers run again."""
        with self.batches.attention(self.model):
            return cast(torch.Tensor, super().training_step(*args, **kwargs))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As trl's, which computes the head for each token of a batch where there is no Triton."""
        if not self.lean or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        tokens = (inputs["labels"][:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = model(**inputs, lean_loss=True) / torch.as_tensor(tokens).clamp(min=1)
        # the tokens are those of all processes, whose gradients DDP averages
        whole = self.args.average_tokens_across_devices and num_items_in_batch is not None
        return loss * self.accelerator.num_processes if whole else loss

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Nats per supervised token; of a batch, the sums of its rows are kept."""
        model, rows = cast(torch.nn.Module, self.model), cast(Any, eval_dataset or self.eval_dataset)
        training = model.training
        model.eval()
        # of a model without the lean loss there is the mean of a batch alone
        size = 1 if self.proven else self.args.per_device_eval_batch_size
        # of each row or batch: the sum of the losses, tokens
        found = torch.zeros(math.ceil(len(rows) / size), 2, dtype=torch.float64, device=self.args.device)
        for indices, counts in self._shares(len(rows)):
            batch = self.data_collator(features := [rows[index] for index in indices])
            tokens, inputs = supervised(features, batch["labels"]), self._prepare_inputs(batch)
            with self.compute_loss_context_manager(), self.batches.attention(model):
                if self.proven:
                    losses = [part.sum() for part in model(**inputs, lean_loss="each").double().split(tokens)]
                else:
                    tokens = [sum(tokens)]
                    losses = [self.compute_loss(model, inputs).double() * tokens[0]]
            if counts:
                first = indices.start // size
                found[first : first + len(losses)] = torch.stack([torch.stack(losses), found.new_tensor(tokens)], dim=1)
        sums, counted = self.accelerator.reduce(found).cpu().numpy().T
        loss = float(sums.sum() / counted.sum())
        if eval_dataset is None:  # of the weights that are saved it is the last one or the lowest
            unit = "row" if self.proven else "batch"
            step = self.state.global_step
            self.validated[step] = Units(sums, counted, "mean", False, f"{self.validation_rows} {size}", unit)
            best = min(self.validated, key=lambda step: self.validated[step].value)
            self.validated = {kept: self.validated[kept] for kept in (best, step)}
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        model.train(training)
        return metrics

    def _shares(self, count: int) -> Iterator[tuple[range, bool]]:
        """The rows of each of this process's batches, and whether they count.

        All processes have equally many, since they go in step where the weights are in shards; a batch that is there
        for that alone counts for nothing.
        """
        size, ranks = self.args.per_device_eval_batch_size, self.accelerator.num_processes
        batches = [range(first, min(first + size, count)) for first in range(0, count, size)]
        mine = batches[self.accelerator.process_index :: ranks]
        yield from ((batch, True) for batch in mine)
        if len(mine) < math.ceil(len(batches) / ranks):
            yield batches[0], False


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
        load_best_model_at_end=t.load_best_model_at_end,
        metric_for_best_model="eval_loss" if t.eval_steps else None,
        greater_is_better=False if t.eval_steps else None,
        torch_compile=t.torch_compile,
        ddp_find_unused_parameters=False,  # all that is trained is used
        fsdp=cast(Any, t.fsdp or None),  # annotated as the string of older versions
        fsdp_config={**FSDP} if t.fsdp else None,
        prediction_loss_only=True,  # kept logits would grow with the rows times the vocabulary
        remove_unused_columns=False,  # the collator reads the lengths of packed rows
        report_to=["wandb"] if config.tracking.kind == "wandb" else [],
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        **t.extra,
    )
