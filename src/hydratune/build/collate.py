"""Rows of token ids -> the tensors of a batch, padded or packed."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # a label that no loss counts
NO_INPUTS = ("rows", "tokens", "supervised")  # of a batch, what the model doesn't take


@dataclass
class Collator:
    """Features {"input_ids", "labels", "seq_lengths"} -> a batch of int64 tensors.

    seq_lengths are those of the rows packed into the feature, in their order; without them it is one row.
    """

    pad_token_id: int
    separate: bool = False  # no row of a feature sees another
    flatten: bool = False  # with `separate`: the whole batch in one line, as FlashAttention needs it
    lengths: bool = False  # with `flatten`: tells the rows' lengths, as build/attention.py needs them

    def __post_init__(self) -> None:
        if self.flatten and not self.separate:
            raise ValueError("flatten=True needs separate=True: rows in one line would see each other")

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """input_ids and labels of shape (B, T), padded on the right to the longest feature, and attention_mask.

        separate: position_ids instead of attention_mask. They start at 0 in each row: that is what transformers
        separates rows by, where it is given no mask and no cache. Each token of padding is a row of its own.
        flatten: shape (1, tokens), no padding. lengths: `seq_lengths`, those of all rows, as a list.
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
        batch: dict[str, Any] = {
            "input_ids": _padded(ids, self.pad_token_id),
            "position_ids": position_ids,
            # the first token of a row would be what the last one of the row before is trained to predict
            "labels": _padded(labels, IGNORED).masked_fill(position_ids == 0, IGNORED),
        }
        return batch | {"seq_lengths": list(chain.from_iterable(rows))} if self.lengths else batch


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def supervised(features: list[dict[str, Any]], labels: Tensor) -> list[int]:
    """How many tokens of each feature the loss counts, in the order in which the batch's labels have them."""
    if len(labels) == len(features):
        return [int(count) for count in (labels[:, 1:] != IGNORED).sum(dim=1)]
    rows = labels[0].split([len(feature["input_ids"]) for feature in features])  # in one line
    return [int((row != IGNORED).sum()) for row in rows]


@dataclass
class Counted:
    """A collator whose batches tell too which rows they hold, as pairs of file and number, and how many tokens."""

    collator: Collator

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """`rows`, `tokens` and `supervised` beside the tensors; padding counts for nothing."""
        rows: list[tuple[int, int]] = []
        for feature in features:
            file, number = feature["file"], feature["number"]
            rows += zip(file, number, strict=True) if isinstance(file, list) else [(file, number)]
        batch = self.collator(features)
        # the first token of a row is predicted from nothing
        supervised = int((batch["labels"][:, 1:] != IGNORED).sum())
        tokens = sum(len(feature["input_ids"]) for feature in features)
        return {**batch, "rows": rows, "tokens": tokens, "supervised": supervised}
