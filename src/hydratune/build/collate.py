"""Rows of token ids -> the tensors of a batch, padded or packed; and the proof that packed rows stay apart."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # a label that no loss counts


@dataclass
class Collator:
    """Features {"input_ids", "labels", "seq_lengths"} -> a batch of int64 tensors.

    seq_lengths are those of the rows packed into the feature, in their order; without them it is one row.
    """

    pad_token_id: int
    separate: bool = False  # no row of a feature sees another
    flatten: bool = False  # with `separate`: the whole batch in one line, as FlashAttention needs it

    def __post_init__(self) -> None:
        if self.flatten and not self.separate:
            raise ValueError("flatten=True needs separate=True: rows in one line would see each other")

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """input_ids and labels of shape (B, T), padded on the right to the longest feature, and attention_mask.

        separate: position_ids instead of attention_mask. They start at 0 in each row: that is what transformers
        separates rows by, where it is given no mask and no cache. Each token of padding is a row of its own.
        flatten: shape (1, tokens), no padding.
        """
        ids = [torch.tensor(feature["input_ids"]) for feature in features]
        labels = [torch.tensor(feature["labels"]) for feature in features]
        if not self.separate:
            return {
                "input_ids": _padded(ids, self.pad_token_id),
                "attention_mask": _padded([torch.ones_like(row) for row in ids], 0),
                "labels": _padded(labels, IGNORED),
            }
        rows = [feature.get("seq_lengths") or [len(feature["input_ids"])] for feature in features]
        positions = [torch.cat([torch.arange(length) for length in lengths]) for lengths in rows]
        if self.flatten:
            ids, labels, positions = ([torch.cat(parts)] for parts in (ids, labels, positions))
        position_ids = _padded(positions, 0)
        return {
            "input_ids": _padded(ids, self.pad_token_id),
            "position_ids": position_ids,
            # the first token of a row would be what the last one of the row before is trained to predict
            "labels": _padded(labels, IGNORED).masked_fill(position_ids == 0, IGNORED),
        }


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def separates(model: torch.nn.Module, collator: Collator) -> bool:
    """Whether no row that `collator` packs sees another in `model`, a causal language model, with or without adapter.

    The loss of one row among four, in two packs of different length, must have a gradient at the embedding of each
    token that it is predicted from, and exactly none at any other. Masked attention gives exact zeros in every type,
    and so do LLM.int8 and routed experts, where a comparison of outputs finds other rows in the rounding. Leaves
    parameters, their gradients, the mode and the random state as they were. To be called under the autocast that
    training has: without it, weights of several types may not fit together.
    """
    network = cast(Any, model)
    batch = {name: tensor.to(network.device) for name, tensor in collator(_four_rows(network)).items()}
    labels = batch.pop("labels")
    embedded: list[Tensor] = []

    def keep(_module: torch.nn.Module, _args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook, training = network.get_input_embeddings().register_forward_hook(keep), model.training
    try:
        model.eval()  # no dropout, no checkpointing
        with torch.enable_grad():
            # not the model's own loss: that of experts may balance all tokens
            logits = network(**batch, use_cache=False).logits[:, :-1].float()
            loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten().to(logits.device), ignore_index=IGNORED)
            (gradient,) = torch.autograd.grad(loss, embedded[-1])
    finally:
        hook.remove()
        model.train(training)
    predicted_from = (labels != IGNORED).roll(-1, dims=-1)
    return torch.equal(gradient.ne(0).any(-1), predicted_from.to(gradient.device))


def _four_rows(network: Any) -> list[dict[str, Any]]:
    """Two features of random tokens, two rows in each; the last row alone has labels."""
    generator = torch.Generator().manual_seed(0)
    size = network.config.get_text_config().vocab_size
    features = []
    for lengths in ([12, 20], [16, 8]):
        ids = torch.randint(size, (sum(lengths),), generator=generator).tolist()
        features.append({"input_ids": ids, "labels": [IGNORED] * len(ids), "seq_lengths": lengths})
    features[-1]["labels"][-8:] = features[-1]["input_ids"][-8:]
    return features
