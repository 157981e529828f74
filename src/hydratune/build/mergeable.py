"""An adapter by its configuration and the names of its tensors, and whether any merge can put it into its base."""

import math
import re
from dataclasses import dataclass
from typing import Any

from hydratune.build.blueprint import Blueprint
from hydratune.config.rules import CHANGES_BASE

PREFIX = "base_model.model."  # of every name in an adapter
# options of peft with which the trained model does what its base's weights can't
CHANGES_MODEL = {
    "alora_invocation_tokens": "lets it act from some tokens on only",
    "layer_replication": "gives the model more layers",
}
ANOTHER_VOCABULARY = (
    "The adapter was trained with another vocabulary than the base's, and holds the rows of only one of embedding and "
    "head: set lora.modules_to_save=[embed_tokens,lm_head]."
)


@dataclass
class Described:
    """A PEFT LoRA adapter: its configuration, and the shapes of its tensors by name."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    def scaling(self, module: str) -> float:
        """lora_alpha / r of `module`, or lora_alpha / sqrt(r) with rsLoRA (arXiv:2312.03732)."""
        r = self._of(module, "rank_pattern", self.config["r"])
        alpha = self._of(module, "alpha_pattern", self.config["lora_alpha"])
        return float(alpha / math.sqrt(r) if self.config.get("use_rslora") else alpha / r)

    def _of(self, module: str, patterns: str, otherwise: float) -> float:
        """As peft finds it: the first pattern that matches the end of the module's name."""
        named: dict[str, float] = self.config.get(patterns) or {}
        return next((value for key, value in named.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def module_of(name: str) -> str:
    """The module that a tensor of the adapter is for."""
    short = name.removeprefix(PREFIX)
    module = short.rpartition(".lora_")[0] if ".lora_" in short else short.rpartition(".")[0]
    return module.removesuffix(".base_layer")


def unmergeable(adapter: Described, parameters: frozenset[str]) -> str | None:
    """The refusal of an adapter that no merge can put into the weights of a model with these `parameters`."""
    config = adapter.config
    init = str(config.get("init_lora_weights")).lower()
    if init.startswith(CHANGES_BASE):
        return (
            f"The adapter was initialised with init_lora_weights={init}, which changes the base's weights too, and was "
            "saved without its conversion: train with lora.init_lora_weights=true."
        )
    for option, what in CHANGES_MODEL.items():
        if config.get(option):
            return (
                f"The adapter's {option} {what}, which no weights of the base can do: leave lora.extra.{option} out, or "
                "merge out of stages."
            )
    biased = [module_of(name) for name in sorted(adapter.shapes) if name.endswith(".lora_B.bias")]
    lost = [module for module in biased if parameters and f"{module}.bias" not in parameters]
    if lost:
        return (
            f"lora_bias=true trains a bias for {len(lost)} layers without one, such as {lost[0]}, and the merged model has "
            "no place for it: set lora.extra.lora_bias=false, or leave merge out of stages."
        )
    return None


def not_by_peft(adapter: Described, known: Blueprint, resized: bool) -> str | None:
    """The refusal of an adapter that peft's own merge makes another model of than was trained.

    `resized`: the adapter has another vocabulary than its base.
    """
    together = known.tied and bool(adapter.config.get("ensure_weight_tying"))
    if (resized or together) and any(".lora_" in name for name in of_embeddings(adapter, known)):
        return "peft's own merge of an adapter of this embedding is not what was trained: set merge.method=stream."
    return None


def of_embeddings(adapter: Described, known: Blueprint) -> list[str]:
    """The tensors of the adapter for embedding and head."""
    starts = tuple(name.removesuffix("weight") for name in (known.embedding, known.head) if name)
    return [name for name in adapter.shapes if name.removeprefix(PREFIX).startswith(starts)]
