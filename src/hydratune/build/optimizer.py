"""LoRA+ (arXiv:2402.12354): B at a higher learning rate than A, with whatever optimizer transformers makes."""

from typing import Any, cast

from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import nn

Groups = list[dict[str, Any]]


def loraplus_groups(model: nn.Module, lr: float, ratio: float, weight_decay: float) -> Groups:
    """The trained parameters as peft groups them: A and whole tensors at `lr`, B and vectors at `ratio` times that."""

    def take(groups: Groups, **_: Any) -> Groups:
        return groups

    groups: Any = create_loraplus_optimizer(
        cast(PeftModel, model),
        cast(Any, take),
        lr=lr,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=weight_decay,
        loraplus_lr_embedding=lr,  # peft's default of 1e-6 would leave an embedding's adapter where it is
    )
    return [group for group in groups if group["params"]]


class LoraPlus:
    """For a transformers.Trainer: its own optimizer, over the groups of LoRA+ where `loraplus_lr_ratio` is set.

    The schedule scales each group's own rate, and a checkpoint holds the groups as it holds any.
    """

    loraplus_lr_ratio: float | None = None

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        trainer: Any = self
        if self.loraplus_lr_ratio is not None and trainer.optimizer is None:
            tuned = trainer.model if model is None else model
            args = trainer.args
            kind, options = trainer.get_optimizer_cls_and_kwargs(args, tuned)
            groups = loraplus_groups(tuned, args.learning_rate, self.loraplus_lr_ratio, args.weight_decay)
            trainer.optimizer_cls_and_kwargs = kind, {**options, "params": groups}
        return cast(Any, super()).create_optimizer(model)
