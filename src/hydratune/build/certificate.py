"""Whether the merged folder, loaded as any other tool would load it, is the model that was trained."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hydratune.build.adapter import adapter_model
from hydratune.build.hardware import Hardware
from hydratune.build.model import load_plain
from hydratune.config.schema import Config

ASKED = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True)
class Certificate:
    """Adapter model against merged folder, both computed in float32."""

    kl: float  # mean KL divergence of the next token's distributions, nats
    max_logit_difference: float
    same_greedy_tokens: float  # share of positions at which both find the same token likeliest
    same_prompt_tokens: bool  # the folder's own tokenizer against that of training
    vocabulary_fits: bool  # every token has a row in the embedding
    tied_as_configured: bool  # embedding and head are one tensor exactly where config.json says so
    max_weight_difference: float  # of one weight, relative to its own size; 16-bit rounding gives up to 4e-3
    most_different_weight: str
    rows: int

    def as_metrics(self) -> dict[str, Any]:
        return {f"merge/{name}": value for name, value in asdict(self).items()}


@torch.no_grad()
def certify(
    config: Config,
    hardware: Hardware,
    source: str,
    adapter: Path,
    merged: Path,
    rows: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> Certificate:
    """Over `rows` of token ids."""
    exact = replace(hardware, dtype="float32", compute_dtype="float32")
    trained = adapter_model(config, adapter, exact, source)
    fresh: Any = load_plain(str(merged), torch.float32, trained.device)
    divergences, differences, same, positions = [], [], 0, 0
    for ids in rows:
        batch = torch.tensor([ids], device=trained.device)
        a, b = trained(batch).logits.double(), fresh(batch).logits.double()
        differences.append((a - b).abs().max().item())
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1).mean().item())
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        positions += len(ids)
    own = AutoTokenizer.from_pretrained(merged)
    embedding, head = fresh.get_input_embeddings(), fresh.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    weight, weight_difference = _worst_weight(trained, fresh)
    return Certificate(
        kl=sum(divergences) / len(divergences),
        max_logit_difference=max(differences),
        same_greedy_tokens=same / positions,
        same_prompt_tokens=_prompt(own) == _prompt(tokenizer),
        vocabulary_fits=len(own) <= embedding.weight.shape[0],
        tied_as_configured=tied == bool(fresh.config.get_text_config().tie_word_embeddings),
        max_weight_difference=weight_difference,
        most_different_weight=weight,
        rows=len(rows),
    )


def _prompt(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def _worst_weight(trained: torch.nn.Module, fresh: torch.nn.Module) -> tuple[str, float]:
    """Of the weights in both models, the one with the greatest difference relative to the weight's own size."""
    weights = dict(fresh.named_parameters())
    found = [("", 0.0)]
    for name, module in trained.named_modules():
        plain = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        if f"{plain}.weight" not in weights or isinstance(module, LoraLayer | bnb.nn.Linear8bitLt):
            continue
        weight = _values(module)
        parent = trained.get_submodule(name.removesuffix(".base_layer")) if name.endswith(".base_layer") else None
        if isinstance(parent, LoraLayer) and not parent.use_dora.get("default") and "default" in parent.lora_A:
            weight = weight + cast(Any, parent).get_delta_weight("default").float()
        elif isinstance(parent, LoraLayer):
            continue  # not the sum of two tensors: the logits tell of it
        difference = (weight - weights[f"{plain}.weight"].float()).norm() / weight.norm().clamp_min(1e-12)
        found.append((f"{plain}.weight", difference.item()))
    return max(found, key=lambda one: one[1])


def _values(module: torch.nn.Module) -> torch.Tensor:
    if isinstance(module, bnb.nn.Linear4bit):
        weight = cast(Any, module.weight)
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    return cast(torch.Tensor, module.weight).detach().float()
