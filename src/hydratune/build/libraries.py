"""Importing the libraries, which takes most of the time before the first step, in half the CPU seconds."""

import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from importlib.metadata import packages_distributions
from types import ModuleType
from typing import Any
from unittest.mock import patch

FOR_TRAINING = ("bitsandbytes", "peft", "trl.trainer.sft_trainer")
FOR_EVALUATION = ("bitsandbytes", "peft", "lm_eval.evaluator")


def import_libraries(training: bool, tracker: bool, evaluation: bool = False) -> None:
    """transformers, and what training and evaluation need; wandb only where `tracker` says that it is used."""
    with ExitStack() as stack:
        stack.enter_context(_no_collection())
        if not tracker:
            stack.enter_context(_hidden("wandb"))  # 0.6 s, which transformers imports where it is installed
        # 0.3 s, for losses of finding objects in images
        stack.enter_context(_postponed("scipy.optimize", "linear_sum_assignment"))
        stack.enter_context(patch.object(importlib.metadata, "packages_distributions", _Distributions))
        torch = importlib.import_module("torch")
        importlib.import_module("transformers")
        if training or evaluation:
            if not torch.cuda.is_available():
                # bitsandbytes wraps four functions of its plain backend, for which torch imports its compiler, 0.8 s; on
                # a CPU they would call a C++ compiler in the middle of training
                stack.enter_context(patch.object(torch, "compile", _as_it_is))
            for name in FOR_TRAINING * training + FOR_EVALUATION * evaluation:
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


class _Distributions(Mapping[str, list[str]]):
    """What packages_distributions() gives, whose reading takes 0.3 s, to trl, which asks it for versions.

    Of several distributions of a package trl takes the one that has its name: where there is one, no more is read.
    """

    @cached_property
    def _all(self) -> Mapping[str, list[str]]:
        return packages_distributions()

    def __getitem__(self, name: str) -> list[str]:
        try:
            return [importlib.metadata.distribution(name).metadata["Name"]]
        except importlib.metadata.PackageNotFoundError:
            return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


@contextmanager
def _postponed(name: str, function: str) -> Iterator[None]:
    """Who imports `function` from the module gets one that imports it when it is called; for all else it is imported."""
    if name in sys.modules:
        yield
        return
    stand_in = _StandIn(name)

    def called(*args: Any, **options: Any) -> Any:
        return getattr(stand_in.real(), function)(*args, **options)

    setattr(stand_in, function, called)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        stand_in.leave()


class _StandIn(ModuleType):
    def leave(self) -> None:
        """Make room for the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def real(self) -> ModuleType:
        self.leave()
        return importlib.import_module(self.__name__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.real(), name)
