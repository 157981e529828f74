"""Values of a configuration against the type annotations of a library's options. Pure: standard library only."""

import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin


def fits(value: Any, hint: Any) -> bool:
    """Whether plain data `value` can be meant for `hint`; what a configuration can't judge fits."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    kind = origin or hint
    if kind in (None, types.NoneType):
        return value is None
    if not isinstance(kind, type) or kind is object:
        return True
    if issubclass(kind, Enum):
        return value in [member.value for member in kind]
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in (str, bool):
        return isinstance(value, kind)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping)
    if issubclass(kind, Sequence):
        return isinstance(value, list | tuple)
    return True


def words(hint: Any) -> str:
    """A type in a user's words: 'a whole number or null'."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(part) for part in get_args(hint)))
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    kind = origin or hint
    if kind in (None, types.NoneType):
        return "null"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping of names to values"
    if kind in (list, tuple, Sequence):
        inner = get_args(hint)
        return f"a list of {'whole numbers' if inner == (int,) else 'texts' if inner == (str,) else 'values'}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Any: "any value"}
    return plain.get(kind, f"a {getattr(kind, '__name__', kind)}")
