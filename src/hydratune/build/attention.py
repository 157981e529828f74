"""Attention over rows in one line, each by itself: no mask of all tokens against all, and nothing computed for padding."""

from collections.abc import Iterator
from contextlib import contextmanager
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
    sliding_window: int | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row alone, as an attention function of transformers.

    query has the shape (1, heads, tokens, head_dim), key and value (1, key heads, tokens, head_dim); `seq_lengths` are
    the rows' and sum up to the tokens. A row of T tokens may have a mask of its own in `seq_masks`, (T, T), true where
    a token sees another. `seq_shared`: the first row, of S tokens, stands before each other one, whose masks then are
    (T, S + T). Returns (1, tokens, heads, head_dim). Raises NotImplementedError for what it doesn't know:
    logits that are capped, sinks, rows beyond a window.
    """
    if seq_lengths is None or any(further.get(name) is not None for name in ("softcap", "s_aux")):
        raise NotImplementedError
    if sliding_window and max(seq_lengths) > sliding_window:
        raise NotImplementedError
    rows: list[Tensor] = []
    masks = seq_masks or [None] * len(seq_lengths)
    queries, keys, values = (states.split(seq_lengths, dim=2) for states in (query, key, value))
    for q, k, v, mask in zip(queries, keys, values, masks, strict=True):
        if seq_shared and rows:
            k, v = torch.cat([keys[0], k], dim=2), torch.cat([values[0], v], dim=2)
        rows.append(
            scaled_dot_product_attention(
                q, k, v, mask, dropout_p=dropout, is_causal=mask is None, scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )  # fmt: skip
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(NAME, _of_rows)
AttentionMaskInterface.register(NAME, _no_mask)


def sees_whole_rows(config: PreTrainedConfig, max_length: int) -> bool:
    """Whether no token of a row of `max_length` is beyond a window that a model of this configuration may have."""
    text = config.get_text_config()
    windows = [value for name in WINDOWS if isinstance(value := getattr(text, name, None), int)]
    return all(window >= max_length for window in windows)


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
