"""The base's stored tensors with the values that training had of them."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hydratune.build.blueprint import Blueprint, float32_of, skeleton
from hydratune.build.safetensors_folder import SafetensorsFolder


class AsLoaded(SafetensorsFolder):
    """Rounded, still in the type that they are stored in, where they were loaded in another one for training."""

    def __init__(
        self,
        folder: Path,
        trust_remote_code: bool,
        loaded: torch.dtype,
        known: Blueprint | None = None,
        float32: list[str] | None = None,
    ) -> None:
        """`known` and `float32` are what training saw of the model; without them its code is asked again."""
        super().__init__(folder, trust_remote_code, known)
        self._loaded = loaded
        wider = [
            name
            for name, entry in self.entries.items()
            if entry.dtype.is_floating_point and torch.promote_types(entry.dtype, loaded) != loaded
        ]
        kept = (_float32(folder, trust_remote_code, loaded) if float32 is None else float32) if wider else []
        self._rounded = {name for name in wider if not any(re.search(pattern, name) for pattern in kept)}
        for name in self._rounded:
            self.entries[name] = replace(self.entries[name], value=partial(self._values, name))

    def tensor(self, name: str) -> Tensor:
        found = super().tensor(name)
        return found.to(self._loaded).to(found.dtype) if name in self._rounded else found

    def _values(self, name: str) -> Iterator[Tensor]:
        yield self.tensor(name)


def _float32(folder: Path, trust_remote_code: bool, loaded: torch.dtype) -> list[str]:
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return float32_of(skeleton(settings, trust_remote_code), loaded)
