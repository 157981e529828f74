"""Nothing secret is written to a run directory: tokens, passwords in URLs, keys of the environment."""

import os
import re
from typing import Any

from omegaconf import OmegaConf

from hydratune.config.schema import ConfigError

REDACTED = "***"
_NAME = re.compile(
    r"(^|_)(token(?!_indices)|secret|passwd|password|credentials?|api_?key|access_key|private_key)($|_)", re.I
)
_URL = re.compile(r"(\w+://)[^/\s@]+@")
_QUERY = re.compile(r"([?&][\w-]*(?:token|secret|passw|key|sig)[\w-]*=)[^&\s]+", re.I)
_ENTRY = re.compile(r"([\w-]+)(\s*:\s*)([^,}\]]+)")  # name: value, in a mapping as it is typed
_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")  # the hub's tokens
_MISSING = object()


def redacted(value: Any, name: str = "") -> Any:
    """`value` with tokens, and the user and password of URLs, replaced by ***."""
    if isinstance(value, dict):
        return {key: redacted(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner, name) for inner in value]
    if not isinstance(value, str):
        return value
    if _NAME.search(name):
        return REDACTED
    return _VALUE.sub(REDACTED, _QUERY.sub(rf"\1{REDACTED}", _URL.sub(rf"\1{REDACTED}@", value)))


def redacted_override(override: str) -> str:
    """An override as typed, with the same left out."""
    key, equals, value = override.partition("=")
    if value.startswith("{"):
        value = _ENTRY.sub(lambda m: f"{m[1]}{m[2]}{REDACTED}" if _NAME.search(m[1]) else m[0], value)
    return f"{key}{equals}{redacted(value, key.rpartition('.')[2])}"


def guard_environment() -> None:
    """Let ${oc.env:NAME} read no secret: what a configuration reads is saved with the run."""
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def _environment(name: str, default: Any = _MISSING) -> Any:
    if _NAME.search(name):
        raise ConfigError(
            f"${{oc.env:{name}}} would save a secret with the run: leave it out, the libraries read {name} themselves."
        )
    value = os.environ.get(name, default)
    if value is _MISSING:
        raise ConfigError(f"${{oc.env:{name}}}: the environment has no {name}; set it, or ${{oc.env:{name},DEFAULT}}.")
    return value
