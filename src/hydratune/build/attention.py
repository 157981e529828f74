"""Attention over rows in one line, each by itself: no mask of all tokens against all, and nothing computed for padding."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

NAME = "sdpa_of_rows"
# settings of models whose tokens see only so many before them, which some of them have in the mask alone
WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "keep_window_size",
    "attention_window",
    "window_size",
    "local_window",
)


class Past:
    """Keys and values of rows that go on, each in a slot of its own, all behind the same beginning."""

    def __init__(self, slots: int, room: int) -> None:
        """`room`: tokens of a slot."""
        self.slots, self.room, self.beginning = slots, room, 0
        self.lengths: list[int] = []  # tokens of the rows, which have the first slots
        self._layers: dict[torch.nn.Module, tuple[Tensor, Tensor]] = {}

    def begin(self) -> None:
        """What the first row has becomes the beginning of all that will be added, in place of it."""
        (self.beginning,) = self.lengths
        self.lengths = []
        for states in self._both():
            states[1:, :, : self.beginning] = states[:1, :, : self.beginning]

    def drop(self, row: int) -> None:
        """The last row takes its slot."""
        length = self.lengths[row] = self.lengths[-1]
        last = len(self.lengths) - 1
        if row < last:
            for states in self._both():
                states[row, :, self.beginning : length] = states[last, :, self.beginning : length]
        self.lengths.pop()

    def add(self, module: torch.nn.Module, row: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all of the row's tokens, with these new ones."""
        first, last = self.lengths[row], self.lengths[row] + key.shape[2]
        keys, values = self._layer(module, key, value)
        keys[row, :, first:last], values[row, :, first:last] = key[0], value[0]
        return keys[row : row + 1, :, :last], values[row : row + 1, :, :last]

    def step(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention where each row has one new token."""
        keys, values = self._layer(module, key, value)
        count, longest, at = len(self.lengths), max(self.lengths) + 1, torch.tensor(self.lengths)
        for states, new in ((keys, key), (values, value)):
            states[torch.arange(count), :, at] = new[0].transpose(0, 1)
        seen = (torch.arange(longest) <= at[:, None])[:, None, None]
        # the heads that share keys stand where else a row's tokens would
        queries = query[0].transpose(0, 1).unflatten(1, (keys.shape[1], -1))
        rows = keys[:count, :, :longest], values[:count, :, :longest]
        return scaled_dot_product_attention(queries, *rows, seen, scale=scaling).flatten(1, 2)[None]

    def _layer(self, module: torch.nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if module not in self._layers:
            heads = key.shape[1]
            keys, values = (new.new_zeros(self.slots, heads, self.room, new.shape[3]) for new in (key, value))
            self._layers[module] = keys, values
        return self._layers[module]

    def _both(self) -> Iterator[Tensor]:
        for keys, values in self._layers.values():
            yield from (keys, values)


def _of_rows(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    seq_lengths: list[int] | None = None,
    seq_masks: list[Tensor | None] | None = None,
    seq_shared: bool = False,
    seq_past: Past | None = None,
    sliding_window: int | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row alone, as an attention function of transformers.

    query has the shape (1, heads, tokens, head_dim), key and value (1, key heads, tokens, head_dim); `seq_lengths` are
    the rows' and sum up to the tokens. A row of T tokens may have a mask of its own in `seq_masks`, (T, T), true where
    a token sees another. `seq_shared`: the first row, of S tokens, stands before each other one, whose masks then are
    (T, S + T). `seq_past`: the rows go on where they ended there, and a mask is (T, all of the row's tokens). Returns
    (1, tokens, heads, head_dim). Raises NotImplementedError for what it doesn't know: logits that are capped, sinks,
    rows beyond a window.
    """
    if seq_lengths is None or any(further.get(name) is not None for name in ("softcap", "s_aux")):
        raise NotImplementedError
    if sliding_window and max(seq_lengths) > sliding_window:
        raise NotImplementedError
    if seq_past is not None and max(seq_lengths) == 1:
        return seq_past.step(module, query, key, value, scaling), None
    rows: list[Tensor] = []
    masks = seq_masks or [None] * len(seq_lengths)
    queries, keys, values = (states.split(seq_lengths, dim=2) for states in (query, key, value))
    for number, (q, k, v, mask) in enumerate(zip(queries, keys, values, masks, strict=True)):
        if seq_past is not None:
            k, v = seq_past.add(module, number, k, v)
        elif seq_shared and rows:
            k, v = torch.cat([keys[0], k], dim=2), torch.cat([values[0], v], dim=2)
        rows.append(
            scaled_dot_product_attention(
                q, k, v, mask, dropout_p=dropout, is_causal=mask is None and q.shape[2] > 1, scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )  # fmt: skip
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(NAME, _of_rows)
AttentionMaskInterface.register(NAME, _no_mask)


def fit_in_line(config: PreTrainedConfig, max_length: int) -> bool:
    """Whether rows of up to `max_length` tokens may be in one line what they are alone, in a model of this configuration.

    No token of theirs is beyond a window, and none of them is so long that it changes the others.
    """
    text = config.get_text_config()
    windows = [value for name in WINDOWS if isinstance(value := getattr(text, name, None), int)]
    return all(window >= max_length for window in windows) and max_length <= steady_length(config)


def steady_length(config: PreTrainedConfig) -> float:
    """Tokens of a row beyond which the model turns the positions of all rows beside it in another way.

    transformers does so by the largest position of a forward pass (dynamic_rope_update).
    """
    text: Any = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    ropes = [given, *(one for one in given.values() if isinstance(one, dict))]  # one for each kind of layer
    changing = [one for one in ropes if "dynamic" in (kind := str(one.get("rope_type"))) or kind == "longrope"]
    lengths = [one.get("original_max_position_embeddings") or text.max_position_embeddings for one in changing]
    return min(lengths, default=inf)


@contextmanager
def each_row_alone(config: PreTrainedConfig) -> Iterator[None]:
    """Inside, a model of this configuration takes batches in one line, with the argument `seq_lengths`.

    Outside, it is as it was: whoever else calls it, to generate for instance, knows nothing of rows in one line.
    """
    text: Any = config.get_text_config()
    before = text._attn_implementation
    text._attn_implementation = NAME
    try:
        yield
    finally:
        text._attn_implementation = before
