"""The weights that a trained adapter comes to, by peft's own merge of each layer, against those of a loaded folder."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

QUANTIZED = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
BLOCK = 1 << 24  # elements
NOISE = 2e-6  # of a tensor's greatest value: what float32 sums in another order may differ by


@dataclass
class Differences:
    """Of the folder's weights from the expected ones."""

    wrong: int = 0  # weights that are not the expected ones rounded to the folder's type
    most: str = ""  # the tensor that differs most
    apart: float = 0.0  # norm of its difference, relative to its own norm; 16-bit rounding gives up to 4e-3
    tensors: int = 0
    _key: tuple[bool, float] = field(default=(False, -1.0), repr=False)

    def add(self, name: str, wrong: int, apart: float) -> None:
        """Of one tensor. One with wrong weights differs more than any that is merely rounded."""
        self.tensors += 1
        self.wrong += wrong
        key = (wrong > 0, float("inf") if apart != apart else apart)
        if key > self._key:
            self.most, self.apart, self._key = name, apart, key


def become_plain(
    trained: nn.Module, folder: nn.Module, originals: nn.Module | None, device: torch.device
) -> Differences:
    """Turn `trained`, the model inside a PeftModel, into a plain model with the folder's types, on `device`.

    Layer by layer, each compared with that of `folder`, so that neither model is there a second time.
    `originals` has the base's weights where the folder's were not to be those that quantized layers stand for.
    """
    found = Differences()
    for name, theirs in folder.named_modules():
        stored = dict(theirs.named_parameters(recurse=False))
        buffers = {k: b for k, b in theirs.named_buffers(recurse=False) if k not in theirs._non_persistent_buffers_set}
        if not stored and not buffers:
            continue
        layer = trained.get_submodule(name)
        plain = _plain(layer, originals.get_submodule(name) if originals else None)
        for leaf, tensor in {**stored, **buffers}.items():
            expected = getattr(plain, leaf, None)
            if expected is None:
                found.add(f"{name}.{leaf}", tensor.numel(), float("inf"))
                continue
            flipped = isinstance(theirs, Conv1D) and isinstance(plain, nn.Linear) and leaf == "weight"
            found.add(f"{name}.{leaf}", *_compared(expected.detach().T if flipped else expected.detach(), tensor))
            expected.data = expected.data.to(device=device, dtype=tensor.dtype)
        if plain is not layer:
            trained.set_submodule(name, plain)
    trained.to(device)  # what has no weights of its own: buffers that aren't saved
    return found


def _compared(expected: Tensor, stored: Tensor) -> tuple[int, float]:
    """How many weights are wrong, and the relative difference."""
    if expected.shape != stored.shape:
        return stored.numel(), float("inf")
    if not stored.is_floating_point():
        return int((expected.to(stored.device) != stored).sum()), 0.0
    noise = NOISE * expected.abs().max().item() if expected.numel() else 0.0
    wrong, difference, size = 0, 0.0, 0.0
    for one, other in zip(expected.flatten().split(BLOCK), stored.detach().flatten().split(BLOCK), strict=True):
        wanted, there = one.float(), other.to(one.device)
        low, high = (wanted - noise).to(there.dtype), (wanted + noise).to(there.dtype)
        wrong += int((~((low <= there) & (there <= high))).sum())
        difference += float((there.float() - wanted).double().square().sum())
        size += float(wanted.double().square().sum())
    return wrong, (difference / max(size, 1e-24)) ** 0.5


def _plain(layer: nn.Module, original: nn.Module | None) -> nn.Module:
    """The layer without an adapter and unquantized, in float32 where that changes it."""
    if isinstance(layer, TrainableTokensWrapper):
        rows = layer.token_adapter.get_merged_weights(["default"]).detach().clone()
        plain = copy.deepcopy(layer.original_module)
        cast(Any, plain).weight = nn.Parameter(rows, requires_grad=False)
        return plain
    if isinstance(layer, ModulesToSaveWrapper):
        return cast(nn.Module, layer.modules_to_save["default"])
    if isinstance(layer, QUANTIZED):
        return _dequantized(layer, original)
    if not isinstance(layer, LoraLayer):
        return layer
    base = layer.get_base_layer()
    if isinstance(base, QUANTIZED):
        one: Any = copy.copy(layer)  # with the same factors on another base
        one._modules = {**layer._modules, "base_layer": _dequantized(base, original)}
        one.merged_adapters = []
        one.__class__, one.fan_in_fan_out = LoraLinear, False  # bitsandbytes' would quantize what it has merged
    else:
        one = copy.deepcopy(layer).float()
    while isinstance(one, LoraLayer):  # several parameters of one module are adapted in several layers
        cast(Any, one).merge(adapter_names=["default"])
        one = one.base_layer
    return cast(nn.Module, one)


def _dequantized(layer: Any, original: nn.Module | None) -> nn.Linear:
    values: Any
    if original is not None:
        values = cast(Any, original).weight.detach().to(layer.weight.device)
        values = values.T if isinstance(original, Conv1D) else values
    elif isinstance(layer, bnb.nn.Linear8bitLt):
        packed: Any = layer.weight
        scales = packed.SCB if packed.SCB is not None else layer.state.SCB  # where they move when it runs
        values = bnb.functional.int8_vectorwise_dequant(packed.data, cast(Tensor, scales))
    else:
        values = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain = nn.Linear(values.shape[1], values.shape[0], bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(values.float().contiguous(), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().float().clone(), requires_grad=False)
    return plain


def compute_as_in_training(model: nn.Module) -> None:
    """Let 4-bit layers round their weights to the type that they were loaded in, as they do where there are gradients."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.forward = partial(_product, module)  # type: ignore[method-assign]


def _product(layer: Any, x: Tensor) -> Tensor:
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return nn.functional.linear(x, weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def narrow(module: nn.Module) -> list[nn.Parameter]:
    """Its own parameters of 16 bits, without the packed ones."""
    if isinstance(module, bnb.nn.Linear8bitLt):
        return []
    packed = (bnb.nn.Params4bit, bnb.nn.Int8Params)
    own = (p for p in module.parameters(recurse=False) if not isinstance(p, packed))
    return [p for p in own if p.dtype in (torch.bfloat16, torch.float16)]


@contextmanager
def in_float32(model: nn.Module, free: int) -> Iterator[None]:
    """What `model` computes is computed in float32, whatever type its weights have.

    All of it is widened at once where `free` bytes hold it twice over, else each layer for as long as it runs.
    """
    modules = [module for module in model.modules() if narrow(module)]
    handles = []
    if 8 * sum(p.numel() for module in modules for p in narrow(module)) < free:
        for module in modules:
            _widen(module)
        modules = []
    for module in modules:
        before: list[tuple[nn.Parameter, Tensor]] = []
        handles.append(module.register_forward_pre_hook(lambda m, _, kept=before: kept.extend(_widen(m))))
        handles.append(module.register_forward_hook(lambda _, __, ___, kept=before: _put_back(kept)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _widen(module: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    before = [(p, p.data) for p in narrow(module)]
    for p, data in before:
        p.data = data.float()
    return before


def _put_back(kept: list[tuple[nn.Parameter, Tensor]]) -> None:
    for p, data in kept:
        p.data = data
    kept.clear()
