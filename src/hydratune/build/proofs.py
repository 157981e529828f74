"""What makes training fast, proven on the loaded model itself before it is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hydratune.build.collate import IGNORED, Collator

PACKS = ([5, 7], [6, 4])  # lengths of the rows that a proof packs
ALONE = PACKS[-1][-1]  # tokens of the one that has labels


@dataclass(frozen=True)
class Seen:
    """What a model made of four rows, of which the last has labels."""

    batch: dict[str, Any]
    loss: Tensor  # nats a token
    gradient: Tensor  # of the loss by what the embedding gave, (B, T, width)
    logits: Tensor  # (B, T, vocabulary)


def seen(model: torch.nn.Module, collator: Collator) -> Seen:
    """A forward and a backward pass by whole logits.

    Leaves parameters, their gradients, the mode and the random state as they were. To be called under the autocast
    that training has: without it, weights of several types may not fit together.
    """
    batch = _batch(model, collator, _four_rows(model))
    with evaluating(model), _leaves(model) as embedded, torch.enable_grad():
        logits = _logits(model, batch)
        # not the model's own loss, since that of experts may balance all tokens
        targets = batch["labels"][:, 1:].flatten().to(logits.device)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED)
        (gradient,) = torch.autograd.grad(loss, embedded[-1:])
    return Seen(batch, loss.detach(), gradient, logits.detach())


def apart(one: Seen) -> bool:
    """Whether no row saw another.

    The loss of one row among four, in two packs of different length, must have a gradient at the embedding of each
    token that it is predicted from, and exactly none at any other. Masked attention gives exact zeros in every type,
    and so do LLM.int8 and routed experts, where a comparison of outputs finds other rows in the rounding.
    """
    predicted_from = (one.batch["labels"] != IGNORED).roll(-1, dims=-1)
    return torch.equal(one.gradient.ne(0).any(-1), predicted_from.to(one.gradient.device))


def separates(model: torch.nn.Module, collator: Collator) -> bool:
    """Whether no row that `collator` packs sees another in `model`, a causal language model, with or without adapter."""
    return apart(seen(model, collator))


@torch.no_grad()
def as_alone(model: torch.nn.Module, one: Seen) -> bool:
    """Whether the labelled row of `one`, in one line with the others, gave the logits that it gives by itself."""
    row = {name: values[-ALONE:] for name, values in _four_rows(model)[-1].items() if name != "seq_lengths"}
    with evaluating(model):
        return _near(one.logits[0, -ALONE:], _logits(model, _batch(model, Collator(0), [row]))[0])


def as_lean(model: torch.nn.Module, one: Seen) -> bool:
    """Whether the lean loss (build/lean_loss.py) of the same rows is that of the whole logits, and so is the gradient.

    Only what the model's code does with the head's output could make a difference, such as a cap or a scale.
    """
    with evaluating(model), _leaves(model) as embedded, torch.enable_grad():
        loss = model(**one.batch, lean_loss=True) / (one.batch["labels"][:, 1:] != IGNORED).sum()
        (gradient,) = torch.autograd.grad(loss, embedded[-1:])
    return _near(loss.detach().float(), one.loss) and _near(gradient.float(), one.gradient.float())


def _near(one: Tensor, other: Tensor) -> bool:
    """Whether they differ by no more than 5% of their size: rounding to 16 or 8 bits changes less, a mistake far more."""
    return bool((one - other).norm() <= 0.05 * other.norm())


def _logits(model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return cast(Tensor, cast(Any, model)(**inputs, use_cache=False).logits.float())


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout, no checkpointing."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _leaves(model: torch.nn.Module) -> Iterator[list[Tensor]]:
    """What the embedding gives in each forward, as a leaf of the graph."""
    embedded: list[Tensor] = []

    def keep(_module: torch.nn.Module, _args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = cast(Any, model).get_input_embeddings().register_forward_hook(keep)
    try:
        yield embedded
    finally:
        hook.remove()


def _batch(model: torch.nn.Module, collator: Collator, features: list[dict[str, Any]]) -> dict[str, Any]:
    device = cast(Any, model).device
    return {name: part.to(device) if isinstance(part, Tensor) else part for name, part in collator(features).items()}


def _four_rows(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Two features of random tokens, two rows in each; the last row alone has labels."""
    generator = torch.Generator().manual_seed(0)
    size = cast(Any, model).config.get_text_config().vocab_size
    features = []
    for lengths in PACKS:
        ids = torch.randint(size, (sum(lengths),), generator=generator).tolist()
        features.append({"input_ids": ids, "labels": [IGNORED] * len(ids), "seq_lengths": lengths})
    features[-1]["labels"][-ALONE:] = features[-1]["input_ids"][-ALONE:]
    return features
