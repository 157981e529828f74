"""Importing the libraries, which takes most of the time before the first step, in about 4 CPU seconds instead of 7."""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

FOR_TRAINING = ("bitsandbytes", "peft", "trl.trainer.sft_trainer")


def import_libraries(training: bool, tracker: bool) -> None:
    """transformers, and what training needs; wandb only where `tracker` says that it is used."""
    with ExitStack() as stack:
        stack.enter_context(_no_collection())
        if not tracker:
            stack.enter_context(_hidden("wandb"))  # 0.6 s, which transformers imports where it is installed
        torch = importlib.import_module("torch")
        importlib.import_module("transformers")
        if training:
            if not torch.cuda.is_available():
                # bitsandbytes wraps four functions of its plain backend, for which torch imports its compiler, 0.8 s; on
                # a CPU they would call a C++ compiler in the middle of training
                stack.enter_context(patch.object(torch, "compile", _as_it_is))
            for name in FOR_TRAINING:
                importlib.import_module(name)


def _as_it_is(function: object = None, **_: object) -> object:
    return function if function is not None else _as_it_is


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing of a module is garbage, and looking for some again and again takes 1.5 s."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if on:
            gc.enable()


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """As if the package were not installed, unless it has been imported."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
