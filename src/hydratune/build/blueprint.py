"""What a model's code, without its weights, says of them."""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Blueprint:
    """Names are the model's own, which its checkpoint may shorten."""

    parameters: frozenset[str]
    transposed: frozenset[str]  # modules that keep (in, out): transformers' Conv1D, of which GPT-2 is made
    embedding: str  # the input embedding's weight; empty where the model has none
    head: str  # the output layer's
    tied: bool  # whether the configuration makes those two one tensor


def blueprint_of(model: Any) -> Blueprint:
    """Of a model of transformers, with or without weights."""
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: f"{name}.weight" for name, module in modules.items()}
    return Blueprint(
        parameters=frozenset(name for name, _ in model.named_parameters(remove_duplicate=False)),
        transposed=frozenset(name for name, module in modules.items() if isinstance(module, Conv1D)),
        embedding=names.get(embedding, ""),
        head=names.get(head, ""),
        tied=embedding is not None and head is not None and head.weight is embedding.weight,
    )


def skeleton(settings: Any, trust_remote_code: bool) -> Any:
    """The model of these settings, transformers' configuration, without weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings, trust_remote_code=trust_remote_code)


def blueprint(folder: Path, trust_remote_code: bool) -> Blueprint | None:
    """Of the model in `folder`; None where its code can't be had without `trust_remote_code`, or isn't a causal LM's."""
    from transformers import AutoConfig

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            return blueprint_of(skeleton(settings, trust_remote_code))
    except (ValueError, KeyError, OSError, ImportError):
        return None


def float32_of(model: Any, dtype: torch.dtype) -> list[str]:
    """Patterns of the parameters that transformers loads in float32 though it is asked for `dtype`."""
    return [str(name).replace("*", ".*") for name in model._get_dtype_plan(dtype)]


def as_saved(known: Blueprint) -> dict[str, Any]:
    """For a JSON file, from which `of_saved` has it again without the libraries' imports."""
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(known).items()}


def of_saved(plain: dict[str, Any]) -> Blueprint:
    """What `as_saved` was given."""
    values: dict[str, Any] = {n: frozenset(value) if isinstance(value, list) else value for n, value in plain.items()}
    return Blueprint(**values)
