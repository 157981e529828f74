"""A field of the configuration, with what is known of it."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any

DTYPES = ("auto", "float32", "bfloat16", "float16")


def option(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    choices: Sequence[str] = (),
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Any:
    """A field with what `hydratune explain` says of it and what values.py checks.

    Bounds: > `above`, >= `least`, < `below`, <= `most`. With `choices`, `default` is one of them.
    """
    known: dict[str, Any] = {"meaning": meaning, "unit": unit, "choices": tuple(choices)}
    known |= {"above": above, "least": least, "below": below, "most": most}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=known)
    return field(default=default, metadata=known)
