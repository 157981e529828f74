"""Rows for several processes: the last step of an epoch is filled up with rows that teach nothing.

accelerate would fill it up with rows of the epoch's beginning, which the step would then be trained on again.
"""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

from torch.utils.data import Dataset, Sampler

from hydratune.build.collate import IGNORED


class Filled(Dataset[dict[str, Any]]):
    """`rows`, and behind the last of them one of a single token, without a label."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        first = rows[0]
        self.filler = {**first, "input_ids": first["input_ids"][:1], "labels": [IGNORED], "file": [], "number": []}
        if "seq_lengths" in first:
            self.filler["seq_lengths"] = [1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index] if index < len(self.rows) else self.filler


class _FilledUp(Sampler[int]):
    """`sampler`, and behind its last index that of the filler, up to a multiple of `size`."""

    def __init__(self, sampler: Any, size: int) -> None:
        self.sampler, self.size = sampler, size

    def __iter__(self) -> Iterator[int]:
        yield from self.sampler
        yield from repeat(len(self.sampler), len(self) - len(self.sampler))

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.size) * self.size

    def set_epoch(self, epoch: int) -> None:
        """Which order is drawn."""
        self.sampler.set_epoch(epoch)


def fill_up(loader: Any, size: int) -> None:
    """Let a loader of Filled rows, which accelerate has prepared for several processes, draw multiples of `size` rows."""
    whole = loader.batch_sampler.batch_sampler  # accelerate's, around torch's
    whole.sampler = _FilledUp(whole.sampler, size)
