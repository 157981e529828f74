"""Merge a LoRA adapter into a folder of safetensors, tensor by tensor, without the model.

Peak memory is that of the largest tensor that changes; what doesn't change is copied as bytes. Arithmetic is in
float32 and each tensor is rounded once, to the type that it is stored in.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from hydratune.build.merge_plan import Change, Plan, plan, shape_of
from hydratune.build.mergeable import Described
from hydratune.build.safetensors_folder import Entry, SafetensorsFolder, write_folder

BLOCK = 1 << 18  # elements
Dequantize = Callable[[Tensor], Tensor]  # a base weight, (out, in) -> the values that its quantized form stands for


class Adapter(Described):
    """A PEFT LoRA adapter on disk; its tensors are memory-mapped and read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        file = safe_open(folder / "adapter_model.safetensors", "pt")
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        super().__init__(config, {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())})
        self._file = file

    def tensor(self, name: str) -> Tensor:
        """In float32."""
        found: Tensor = self._file.get_tensor(name)
        return found.float()

    def equal(self, name: str, other: str) -> bool:
        return torch.equal(self.tensor(name), self.tensor(other))


def merge(
    base: SafetensorsFolder, adapter: Adapter, out: Path, dtype: torch.dtype | None, dequantize: dict[str, Dequantize]
) -> Plan:
    """Write the merged weights, their index and the model's configuration into `out`, a shard for each of the base's.

    `dtype`: of all floating-point tensors; None: each keeps its own. `dequantize`: by module, for the weights that
    were quantized in training.
    """
    planned = plan(adapter, base, adapter.equal)
    quantized = {
        key: (f, module in base.blueprint.transposed)
        for module, f in dequantize.items()
        if (key := base.find(f"{module}.weight"))
    }

    def entry(name: str) -> Entry:
        stored = base.source(name)
        changes = planned.changes.get(name, [])
        kind = dtype if dtype is not None and stored.dtype.is_floating_point else stored.dtype
        if not changes and stored.name not in quantized and kind == stored.dtype:
            return stored.renamed(name)

        def value() -> Iterator[Tensor]:
            weight = base.tensor(stored.name)
            if stored.name in quantized:
                f, transposed = quantized[stored.name]
                weight = f(weight.T).T if transposed else f(weight)
            if len(changes) == 1 and _is_plain(changes[0]):
                yield from _in_blocks(weight, changes[0], adapter, kind)
                return
            for change in changes:
                weight = _changed(weight, change, adapter)
            yield weight.to(kind)

        return Entry(name, kind, shape_of(adapter, base, planned, name), value)

    shards = [[entry(name) for name in names] for names in base.shards.values()]
    shards[-1] += [entry(name) for name in planned.new]
    write_folder(out, list(base.shards), shards)
    rows = shape_of(adapter, base, planned, base.embedding)[0] if base.embedding else None
    config = base.changed_config(dtype, untied=planned.untied, vocabulary=rows)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return planned


def _is_plain(change: Change) -> bool:
    return change.kind == "lora" and len(change.names) == 2 and not change.transposed


def _in_blocks(weight: Tensor, change: Change, adapter: Adapter, kind: torch.dtype) -> Iterator[Tensor]:
    """As _changed, for blocks of rows that stay in the processor's cache: the same bits at half the time."""
    a, b = (adapter.tensor(name) for name in change.names)  # (r, in) and (out, r)
    assert weight.shape == (b.shape[0], a.shape[1]), change  # torch would resize `out` below, and write garbage
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
    if change.kind in ("whole", "resized"):
        return adapter.tensor(change.names[0])
    scaling = 0.0 if change.kind == "rows" else adapter.scaling(change.module)
    if change.kind == "bias":
        return weight.float() + adapter.tensor(change.names[0]) * scaling
    if change.kind == "rows":
        return weight.float().index_copy(0, _token_rows(adapter, change.module), adapter.tensor(change.names[0]))
    first, second = (adapter.tensor(name) for name in change.names[:2])
    delta = (second @ first).mul_(scaling)  # (out, r) @ (r, in)
    flipped = change.transposed or change.kind == "embedding"  # (width, r) @ (r, vocabulary)
    merged = (delta.T if flipped else delta).add_(weight)
    if len(change.names) == 2:
        return merged
    # DoRA (arXiv:2402.09353): the merged direction, column-wise at its trained length
    rows = merged.T if flipped else merged
    factor = (adapter.tensor(change.names[2]) / torch.linalg.norm(rows, dim=1)).view(-1, 1)
    return merged.mul_(factor.T if flipped else factor)


def _token_rows(adapter: Adapter, module: str) -> Tensor:
    """The rows that trainable_token_indices names, for all embeddings or by the module's name."""
    indices = adapter.config["trainable_token_indices"]
    if isinstance(indices, dict):
        indices = next(rows for name, rows in indices.items() if module == name or module.endswith(f".{name}"))
    return torch.tensor(indices)
