"""PiSSA (arXiv:2404.02948): the adapter begins as the base's principal components, and the rest of it is frozen."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hydratune.build.cache import build_once
from hydratune.config.schema import LoraConf

FILE = "initial.safetensors"
PARTS = ("lora_A", "lora_B")


def is_pissa(conf: LoraConf) -> bool:
    return conf.kind == "lora" and str(conf.init_lora_weights).lower().startswith("pissa")


def start_from_pissa(model: nn.Module, init: str, folder: Path) -> None:
    """Give the adapter the principal components, and take them out of the base's weights.

    `folder` keeps them: training that goes on needs the same base to the bit, which another decomposition may not give.
    """
    layers = dict(_layers(model))
    if not folder.is_dir():
        # the faster decomposition draws numbers; dropout would see others in a run that goes on, which draws none
        with torch.random.fork_rng():
            for layer in layers.values():
                weight = layer.get_base_layer().weight
                before = weight.data
                layer.pissa_init("default", init.lower())
                weight.data = before
        factors = {f"{name}.{part}.weight": _factor(layer, part) for name, layer in layers.items() for part in PARTS}
        build_once(folder, lambda building: _save(factors, building / FILE))  # whole, or not there
    stored = load_file(folder / FILE)
    for name, layer in layers.items():
        base = layer.get_base_layer()
        a, b = (stored[f"{name}.{part}.weight"].to(base.weight.device) for part in PARTS)
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
        principal = (b @ a).mul_(layer.scaling["default"])  # (out, in)
        base.weight.data = base.weight.data - (principal.T if layer.fan_in_fan_out else principal)


def as_plain_lora(adapter: Path, folder: Path) -> None:
    """Rewrite the saved adapter as one for the base as it was: A B - A0 B0 in one product, of twice the rank.

    As peft's save_pretrained(path_initial_model_for_weight_conversion) does, which loses all but A and B.
    """
    tensors, initial = load_file(adapter / "adapter_model.safetensors"), load_file(folder / FILE)
    for name, start in initial.items():
        if name.endswith(".lora_A.weight"):  # (r, in)
            tensors[name] = torch.cat([tensors[name], start.to(tensors[name].dtype)], dim=0)
        else:  # (out, r)
            tensors[name] = torch.cat([tensors[name], -start.to(tensors[name].dtype)], dim=1)
    path = adapter / "adapter_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    alpha = 2**0.5 if config.get("use_rslora") else 2  # keeps lora_alpha / sqrt(r), or lora_alpha / r
    config |= {"init_lora_weights": True, "r": 2 * config["r"], "lora_alpha": alpha * config["lora_alpha"]}
    for pattern, factor in (("rank_pattern", 2), ("alpha_pattern", alpha)):
        config[pattern] = {name: factor * value for name, value in (config.get(pattern) or {}).items()}
    _save(tensors, adapter / "adapter_model.safetensors")
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def not_by_pissa(model: nn.Module, head: str) -> str | None:
    """Which of the adapted layers of `model`, with or without weights, PiSSA can't begin in; `head`: its weight's name."""
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        base, short = layer.get_base_layer(), name.removeprefix("base_model.model.")
        if "default" not in layer.lora_A or not isinstance(base, nn.Linear | Conv1D) or f"{short}.weight" == head:
            return (
                f"PiSSA begins in linear layers alone, and {short} is adapted too: leave it out of lora.target_modules."
            )
        if layer.r["default"] > min(base.weight.shape):
            return (
                f"{short} has {min(base.weight.shape)} principal components, and its adapter the rank "
                f"{layer.r['default']}: set a smaller lora.r."
            )
    return None


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer) and "default" in m.lora_A)


def _factor(layer: Any, part: str) -> Tensor:
    weight: Tensor = getattr(layer, part)["default"].weight.detach()
    return weight.float().cpu().contiguous()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    building = path.with_name(f".{path.name}")
    save_file(tensors, building, {"format": "pt"})
    with building.open("rb") as file:
        os.fsync(file.fileno())
    building.replace(path)
