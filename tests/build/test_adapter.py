"""The models of a run as they are loaded to be asked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.build.adapter import named_model
from hydratune.build.hardware import resolve
from hydratune.config.schema import Config, ModelConf


@pytest.mark.parametrize("name", ["base", "merged"])
def test_the_device_map_places_each_model(name: str, tiny: Path, tmp_path: Path) -> None:
    extra = {"max_memory": {"cpu": 100_000}, "offload_folder": str(tmp_path / "disk")}
    config = Config(model=ModelConf(name_or_path=str(tiny)))
    placed = replace(config, model=replace(config.model, device_map="auto", extra=extra))
    logits = []
    for one in (config, placed):
        model: Any = named_model(name, one, resolve(one), str(tiny), tmp_path / "adapter", tiny)
        with torch.no_grad():
            logits.append(model(input_ids=torch.tensor([[5, 6, 7]])).logits)
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.equal(*logits)
