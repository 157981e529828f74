"""Batches that get smaller where the memory is too small for them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from hydratune.build.failures import out_of_memory
from hydratune.config.schema import RunError

T = TypeVar("T")


def in_batches(items: Sequence[T], fits: Callable[[Sequence[T]], bool], work: Callable[[Sequence[T]], None]) -> None:
    """`work` on all items in their order, as many at once as `fits`; after running out of memory, on half as many.

    Raises RunError where the memory is too small for one.
    """
    first, most = 0, len(items)
    while first < len(items):
        last = first + 1
        while last < min(len(items), first + most) and fits(items[first : last + 1]):
            last += 1
        try:
            work(items[first:last])
        except (MemoryError, RuntimeError) as error:  # torch's own is one of the latter
            most = half(last - first, error)
        else:
            first = last
            continue
        if torch.cuda.is_available():  # outside the handler, whose error still holds the tensors
            torch.cuda.empty_cache()


def half(count: int, error: BaseException) -> int:
    """Of `count` requests at once, after running out of memory. Raises RunError where it was one, and any other error."""
    if not out_of_memory(error):
        raise error
    if count == 1:
        raise RunError(
            "The memory is too small for a single request of this evaluation: set a smaller model.dtype or "
            "quantization, or leave out the task with the longest prompts."
        ) from None
    return count // 2
