"""The loss with the head computed on supervised positions alone, a few at a time."""

import functools
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from hydratune.build.collate import IGNORED

AT_ONCE = 2**25  # logits, of float32: 128 MiB
# settings of a model's configuration by which its code changes the head's output
AFTER_THE_HEAD = (
    "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "logit_scale", "output_multiplier",
    "lm_head_multiplier", "logits_scaling", "unpadded_vocab_size",
)  # fmt: skip


class _Loss(torch.autograd.Function):
    """Sum of -log p over positions; gradients are taken on the way forward, so that no logits are kept or made twice."""

    @staticmethod
    def forward(
        ctx: Any, head: torch.nn.Module, chunk: int, hidden: Tensor, targets: Tensor, *weights: Tensor
    ) -> Tensor:
        """hidden (N, width), targets (N,); `weights` are those that are trained and that `head` depends on."""
        total = hidden.new_zeros((), dtype=torch.float32)
        wanted = hidden.requires_grad or bool(weights)
        by_hidden = torch.zeros_like(hidden) if hidden.requires_grad else None
        by_weights = [torch.zeros_like(weight) for weight in weights]
        for first in range(0, len(targets), chunk):
            part = hidden[first : first + chunk].detach().requires_grad_(hidden.requires_grad)
            with torch.set_grad_enabled(wanted):
                loss = cross_entropy(head(part).float(), targets[first : first + chunk], reduction="sum")
            total += loss.detach()
            if wanted:
                inputs = [*([part] if by_hidden is not None else []), *weights]
                found = list(torch.autograd.grad(loss, inputs))
                if by_hidden is not None:
                    by_hidden[first : first + chunk] = found.pop(0)
                for sum_, gradient in zip(by_weights, found, strict=True):
                    sum_ += gradient
        ctx.save_for_backward(*([by_hidden] if by_hidden is not None else []), *by_weights)
        ctx.of_hidden = by_hidden is not None
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        scaled = [gradient * outer[0].to(gradient.dtype) for gradient in ctx.saved_tensors]
        return None, None, scaled.pop(0) if ctx.of_hidden else None, None, *scaled


def head_is_all(config: Any) -> bool:
    """Whether a model of this configuration does nothing with its head's output, as far as its settings tell.

    build/proofs.py has the proof; this catches what it could take for rounding in 16 bits.
    """
    return all(getattr(config.get_text_config(), name, None) in (None, 1.0) for name in AFTER_THE_HEAD)


def add_lean_loss(model: PreTrainedModel) -> None:
    """`model(..., labels=labels, lean_loss=True)` is then the sum of the loss over the supervised positions, a scalar.

    With lean_loss="each" it is the loss of each of them, line by line, without gradients. Shape (supervised positions,).
    A part of forward, as trl's own is, so that it is inside whatever wraps the model: an adapter, DDP, autocast.
    """
    known: Any = model
    forward = known.forward

    @functools.wraps(type(model).forward)  # generate reads the signature
    def lean(self: Any, *args: Any, lean_loss: bool | str = False, **kwargs: Any) -> Any:
        if not lean_loss:
            return forward(*args, **kwargs)
        labels = kwargs.pop("labels")
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        targets = labels[:, 1:].to(hidden.device)
        supervised = targets != IGNORED
        head, chunk = self.get_output_embeddings(), max(1, AT_ONCE // self.config.get_text_config().vocab_size)
        if lean_loss == "each":
            return _each(head, chunk, hidden[supervised], targets[supervised])
        return _Loss.apply(head, chunk, hidden[supervised], targets[supervised], *_trained(self, head, hidden))

    known.forward = MethodType(lean, model)


def _each(head: torch.nn.Module, chunk: int, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log p of each position: hidden (N, width), targets (N,) -> (N,), float32."""
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([cross_entropy(head(part).float(), wanted, reduction="none") for part, wanted in parts])


def _trained(model: PreTrainedModel, head: torch.nn.Module, hidden: Tensor) -> list[Tensor]:
    """The weights in training on which `head` depends: its own, and where it is tied those of the embedding."""
    if not torch.is_grad_enabled() or (type(head) is torch.nn.Linear and not head.weight.requires_grad):
        return []
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    one = hidden.detach().flatten(0, -2)[:1]
    output = head(one).float().sum()
    if not output.requires_grad:
        return []
    gradients = torch.autograd.grad(output, weights, allow_unused=True)
    return [weight for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None]
