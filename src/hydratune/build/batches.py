"""conf/data -> how rows become batches: the fastest way that is allowed and proven on the model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedConfig

from hydratune.build.attention import each_row_alone, fit_in_line, steady_length
from hydratune.build.collate import Collator
from hydratune.build.hardware import Hardware
from hydratune.build.proofs import Seen, apart, as_alone, as_lean, seen
from hydratune.build.proven import Proven
from hydratune.config.schema import Config, RunError


@dataclass
class Batches:
    """A collator, and the attention that its batches need."""

    collator: Collator
    name: str
    seen: Seen | None = None  # what the model made of a few rows

    def attention(self, model: Any) -> AbstractContextManager[None]:
        """Inside, `model` takes the batches."""
        return each_row_alone(model.config) if self.collator.lengths else nullcontext()

    def look(self, model: torch.nn.Module) -> Seen:
        """What `model` makes of a few rows, found once."""
        if self.seen is None:
            with self.attention(model):
                self.seen = seen(model, self.collator)
        return self.seen

    def right_in(self, model: torch.nn.Module) -> bool:
        """Whether each row means to `model` what it means alone."""
        try:
            found = self.look(model)
        except (NotImplementedError, TypeError):  # of build/attention.py, or of a model that doesn't hand on lengths
            if not self.collator.lengths:
                raise
            return False
        if not self.collator.separate:
            return True
        return apart(found) and (not self.collator.lengths or as_alone(model, found))

    def lean_in(self, model: torch.nn.Module) -> bool:
        """Whether the lean loss of `model`, in which these batches are right, is its plain one."""
        found = self.look(model)
        try:
            with self.attention(model):
                return as_lean(model, found)
        except (AttributeError, TypeError, ValueError):  # of a model that is built otherwise
            return False


def build_batches(
    config: Config, hardware: Hardware, pad_token_id: int, model: torch.nn.Module, known: Proven
) -> Batches:
    """The first of the ways that are allowed, fastest first, which is right in `model`.

    Raises RunError where none is.
    """
    steady = steady_length(cast(Any, model).config)
    if (config.data.packing or config.data.padding_free) and config.trainer.max_length > steady:
        # rows that are short enough for a proof would not show it
        raise RunError(
            f"In this model a row of more than {steady:,} tokens changes what it makes of the shorter ones in its line: set "
            f"trainer.max_length={steady}, or data.packing=false and data.padding_free=false."
        )
    ways = {way.name: way for way in _ways(config, hardware, pad_token_id, cast(Any, model).config)}

    def first() -> str:
        for name, way in ways.items():
            if way.right_in(model):
                return name
        raise RunError(
            f"In this model, with attention {hardware.attn_implementation}, packed rows see one another: set "
            "data.packing=false and data.padding_free=false."
        )

    return ways[known.answer("batches", ways, first)]


def _ways(config: Config, hardware: Hardware, pad: int, model: PreTrainedConfig) -> Iterator[Batches]:
    data, extra, flash = config.data, config.trainer.extra, hardware.attn_implementation == "flash_attention_2"
    # on a GPU a call for each row and layer would take longer than the padding that it spares, and each new set of
    # lengths would be compiled anew
    compiled = config.trainer.torch_compile or any(name.startswith("torch_compile") for name in extra)
    by_rows = hardware.device == "cpu" and hardware.attn_implementation == "sdpa" and not compiled
    # NEFTune's noise is scaled by the length of a line
    same = not extra.get("neftune_noise_alpha") and config.trainer.max_length <= steady_length(model)
    free = data.padding_free or (data.padding_free is None and same)
    if by_rows and free and fit_in_line(model, config.trainer.max_length):
        yield Batches(Collator(pad, separate=True, flatten=True, lengths=True), "in one line, each row alone")
    if data.padding_free or (flash and (free or data.packing)):
        yield Batches(Collator(pad, separate=True, flatten=True), "in one line")
    elif data.packing:
        yield Batches(Collator(pad, separate=True), "packed")
    if not data.padding_free and not data.packing:
        yield Batches(Collator(pad), "padded")
