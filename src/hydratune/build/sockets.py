"""The two places where a configuration names Python code of the user's: data.formatter and trainer.callbacks."""

import importlib
import os
import sys
from typing import Any

from hydratune.config.schema import ConfigError


def load_socket(key: str, named: str) -> Any:
    """What `named`, written `module:name`, is. The working directory counts as a place for modules, the last one.

    Raises ConfigError where it isn't there, or can't be imported.
    """
    module, colon, name = named.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"{key}={named} must name Python code as module:name.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a folder of the user's hides no library
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"{key}={named}: importing {module} failed: {type(error).__name__}: {error}.") from error
    if not hasattr(found, name):
        raise ConfigError(f"{key}={named}: the module {module} has no {name}.")
    return getattr(found, name)
