"""Merge a LoRA adapter into a folder of safetensors, tensor by tensor, without the model.

Peak memory is that of the largest tensor that changes; what doesn't change is copied as bytes. Arithmetic is in
float32 and each tensor is rounded once, to the type that it is stored in.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hydratune.build.safetensors_folder import Entry, SafetensorsFolder, write_folder
from hydratune.config.schema import RunError

BLOCK = 1 << 18  # elements
PREFIX = "base_model.model."  # of every name in an adapter
Dequantize = Callable[[Tensor], Tensor]  # a base weight as it is stored -> the values that its 4-bit form stands for


class Adapter:
    """A PEFT LoRA adapter on disk; its tensors are memory-mapped and read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        self._file = safe_open(folder / "adapter_model.safetensors", "pt")
        self.names = set(self._file.keys())

    def tensor(self, name: str) -> Tensor:
        """In float32."""
        found: Tensor = self._file.get_tensor(name)
        return found.float()

    def scaling(self, module: str) -> float:
        """lora_alpha / r of `module`, or lora_alpha / sqrt(r) with rsLoRA (arXiv:2312.03732)."""
        r = self._of(module, "rank_pattern", self.config["r"])
        alpha = self._of(module, "alpha_pattern", self.config["lora_alpha"])
        return float(alpha / math.sqrt(r) if self.config.get("use_rslora") else alpha / r)

    def _of(self, module: str, patterns: str, otherwise: float) -> float:
        """As peft finds it: the first pattern that matches the end of the module's name."""
        named: dict[str, float] = self.config.get(patterns) or {}
        return next((value for key, value in named.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


@dataclass(frozen=True)
class Change:
    """How the adapter changes one tensor: by factors, by a whole tensor, or by rows."""

    module: str
    kind: str  # lora, embedding, whole, rows, bias
    names: tuple[str, ...]  # in the adapter


@dataclass
class Plan:
    """What becomes of each tensor of the base."""

    changes: dict[str, list[Change]]  # by the base's own names
    new: dict[str, str]  # a tensor that the base lacks -> the one of the base that it is tied to


def plan(adapter: Adapter, base: SafetensorsFolder) -> Plan:
    """Raises RunError, naming them, where tensors of the adapter belong to no tensor of the base."""
    changes: dict[str, list[Change]] = {}
    new: dict[str, str] = {}
    left = set(adapter.names)
    for change, parameter in _changes(adapter):
        key = base.find(parameter)
        if key is None and parameter == base.head and base.tied:
            key, new[parameter] = parameter, base.embedding
        if key is not None:
            changes.setdefault(key, []).append(change)
            left -= set(change.names)
    if left:
        shown = ", ".join(sorted(name.removeprefix(PREFIX) for name in left)[:3])
        raise RunError(
            f"{len(left)} tensors of the adapter, such as {shown}, can't be merged tensor by tensor: set merge.method=peft."
        )
    _untie(adapter, base, changes, new)
    return Plan(changes, new)


def _changes(adapter: Adapter) -> Iterator[tuple[Change, str]]:
    """Each change, and the name that the model has for the parameter it is about."""
    names = adapter.names
    for name in sorted(names):
        short = name.removeprefix(PREFIX)
        module = short.rpartition(".lora_")[0] if ".lora_" in short else short.rpartition(".")[0]
        module = module.removesuffix(".base_layer")
        stem = name.partition(".lora_")[0]
        if short.endswith(".lora_A.weight"):
            magnitude = f"{stem}.lora_magnitude_vector"
            parts = (name, f"{stem}.lora_B.weight", *([magnitude] if magnitude in names else []))
            yield Change(module, "lora", parts), f"{module}.weight"
        elif short.endswith(".lora_embedding_A"):
            yield Change(module, "embedding", (name, f"{stem}.lora_embedding_B")), f"{module}.weight"
        elif short.endswith(".lora_B.bias"):
            yield Change(module, "bias", (name,)), f"{module}.bias"
        elif short.endswith(".token_adapter.trainable_tokens_delta"):
            module = short.partition(".token_adapter")[0]
            yield Change(module, "rows", (name,)), f"{module}.weight"
        elif ".lora_" not in short:
            yield Change(module, "whole", (name,)), f"{module}.{short.rpartition('.')[2]}"


def _untie(adapter: Adapter, base: SafetensorsFolder, changes: dict[str, list[Change]], new: dict[str, str]) -> None:
    """Where input embedding and head were one tensor and were trained apart, the head becomes a tensor of its own.

    Trained rows stay tied, as peft trains them; so does a head that is saved equal to the embedding.
    """
    if not base.tied or base.embedding not in changes or adapter.config.get("ensure_weight_tying"):
        return
    embedding, head = changes[base.embedding], changes.get(base.head, [])
    whole = [change for change in (*embedding, *head) if change.kind == "whole"]
    if len(whole) == 2 and torch.equal(*(adapter.tensor(change.names[0]) for change in whole)):
        changes.pop(base.head), new.pop(base.head)
    elif any(change.kind != "rows" for change in embedding):
        new.setdefault(base.head, base.embedding)


def merge(
    base: SafetensorsFolder, adapter: Adapter, out: Path, dtype: torch.dtype | None, dequantize: dict[str, Dequantize]
) -> Plan:
    """Write the merged weights, their index and the model's configuration into `out`, a shard for each of the base's.

    `dtype`: of all floating-point tensors; None: each keeps its own. `dequantize`: by module, for the weights that
    were quantized in training.
    """
    planned = plan(adapter, base)
    quantized = {key: f for module, f in dequantize.items() if (key := base.find(f"{module}.weight"))}

    def entry(name: str, source: str) -> Entry:
        stored = base.entries[source]
        changes = planned.changes.get(name, [])
        kind = dtype if dtype is not None and stored.dtype.is_floating_point else stored.dtype
        if not changes and source not in quantized and kind == stored.dtype:
            return stored.renamed(name)

        def value() -> Iterator[Tensor]:
            weight = base.tensor(source)
            if source in quantized:
                weight = quantized[source](weight)
            if len(changes) == 1 and _is_plain(changes[0], weight, adapter):
                yield from _in_blocks(weight, changes[0], adapter, kind)
                return
            for change in changes:
                weight = _changed(weight, change, adapter)
            yield weight.to(kind)

        shape = next((_shape(adapter, c) for c in changes if c.kind == "whole"), stored.shape)
        return Entry(name, kind, shape, value)

    shards = [[entry(name, name) for name in names] for names in base.shards.values()]
    shards[-1] += [entry(name, tied) for name, tied in planned.new.items()]
    write_folder(out, list(base.shards), shards)
    rows = {e.shape[0] for shard in shards for e in shard if e.name == base.embedding}
    config = base.changed_config(dtype, untied=bool(planned.new), vocabulary=rows.pop() if rows else None)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return planned


def _shape(adapter: Adapter, change: Change) -> tuple[int, ...]:
    return tuple(adapter._file.get_slice(change.names[0]).get_shape())


def _is_plain(change: Change, weight: Tensor, adapter: Adapter) -> bool:
    return change.kind == "lora" and len(change.names) == 2 and not _transposed(change, weight, adapter)


def _transposed(change: Change, weight: Tensor, adapter: Adapter) -> bool:
    """Whether the module is transformers' Conv1D, of which GPT-2 is made: it keeps (in, out). A head is a Linear."""
    return bool(adapter.config.get("fan_in_fan_out")) and not change.module.endswith("lm_head")


def _in_blocks(weight: Tensor, change: Change, adapter: Adapter, kind: torch.dtype) -> Iterator[Tensor]:
    """As _changed, for blocks of rows that stay in the processor's cache: the same bits at half the time."""
    a, b = (adapter.tensor(name) for name in change.names)  # (r, in) and (out, r)
    scaling = adapter.scaling(change.module)
    rows = max(1, BLOCK // weight.shape[1])
    delta, base = torch.empty(rows, weight.shape[1]), torch.empty(rows, weight.shape[1])
    with one_thread():
        for start in range(0, weight.shape[0], rows):
            part = weight[start : start + rows]
            torch.mm(b[start : start + rows], a, out=delta[: len(part)])
            yield delta[: len(part)].mul_(scaling).add_(base[: len(part)].copy_(part)).to(kind)


@contextmanager
def one_thread() -> Iterator[None]:
    """Blocks are so small that several threads would mostly wait for each other, at full load."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _changed(weight: Tensor, change: Change, adapter: Adapter) -> Tensor:
    """The changed parameter in float32, its arithmetic in the order of peft's own merge."""
    if change.kind == "whole":
        return adapter.tensor(change.names[0])
    if change.kind == "bias":
        return weight.float() + adapter.tensor(change.names[0]) * adapter.scaling(change.module)
    if change.kind == "rows":
        return weight.float().index_copy(0, _token_rows(adapter, change.module), adapter.tensor(change.names[0]))
    first, second = (adapter.tensor(name) for name in change.names[:2])
    scaling = adapter.scaling(change.module)
    if change.kind == "embedding":  # (r, vocabulary) and (width, r)
        return (second @ first).T.mul_(scaling).add_(weight)
    delta = (second @ first).mul_(scaling)  # (out, r) @ (r, in)
    transposed = _transposed(change, weight, adapter)
    if transposed:
        delta = delta.T
    merged = delta.add_(weight)
    if len(change.names) == 2:
        return merged
    # DoRA (arXiv:2402.09353): the merged direction, column-wise at its trained length
    rows = merged.T if transposed else merged
    factor = (adapter.tensor(change.names[2]) / torch.linalg.norm(rows, dim=1)).view(-1, 1)
    return merged.mul_(factor.T if transposed else factor)


def _token_rows(adapter: Adapter, module: str) -> Tensor:
    """The rows that trainable_token_indices names, for all embeddings or by the module's name."""
    indices = adapter.config["trainable_token_indices"]
    if isinstance(indices, dict):
        indices = next(rows for name, rows in indices.items() if module == name or module.endswith(f".{name}"))
    return torch.tensor(indices)
