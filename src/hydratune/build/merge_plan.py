"""Which tensor of the base each tensor of an adapter changes, and how: from their names and shapes alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hydratune.build.mergeable import ANOTHER_VOCABULARY, PREFIX, Described, module_of, unmergeable
from hydratune.build.safetensors_folder import SafetensorsFolder
from hydratune.config.schema import RunError

# of an embedding whose vocabulary was resized, peft saves what was there before training too
UNTRAINED = (".token_adapter.base_layer.weight", ".base_layer.weight", ".original_module.weight")


@dataclass(frozen=True)
class Change:
    """How the adapter changes one tensor: by factors, by a whole tensor, or by rows."""

    module: str
    kind: str  # lora, embedding, whole, resized (whole, but not trained), rows, bias
    names: tuple[str, ...]  # in the adapter
    transposed: bool = False  # the tensor is (in, out)


Changes = dict[str, list[Change]]  # by the base's own names


@dataclass
class Plan:
    """What becomes of each tensor of the base."""

    changes: Changes
    new: dict[str, str]  # a tensor that the base lacks -> the one of the base that it is tied to
    untied: bool  # embedding and head are tied by the base's configuration, and not in the merged model


def plan(adapter: Described, base: SafetensorsFolder, equal: Callable[[str, str], bool]) -> Plan:
    """`equal` compares two tensors of the adapter by their names.

    Raises RunError where the adapter, or tensors of it, which it names, can't be merged into the base's.
    """
    refused = unmergeable(adapter, base.blueprint.parameters)
    if refused:
        raise RunError(refused)
    changes: Changes = {}
    untrained: Changes = {}
    lost: list[str] = []
    for change, parameter in _changes(adapter, base):
        key = base.find(parameter)
        if key is None and base.tied:  # one name of the two is stored
            pair = {base.blueprint.embedding: base.embedding, base.blueprint.head: base.head}
            key = pair.get(parameter)
        if key is None or (change.kind == "lora" and not _is_matrix(adapter, change)):
            lost += () if change.kind == "resized" else change.names
        elif change.kind != "resized":
            changes.setdefault(key, []).append(change)
        elif _is_resized(adapter, base, change, key):
            untrained[key] = [change]
    if lost:
        modules = sorted({module_of(name) for name in lost})
        count = f"{len(modules)} adapted module{'s' if modules[1:] else ''}"
        raise RunError(f"{count}, such as {modules[0]}, can't be merged tensor by tensor: set merge.method=peft.")
    for key, resized in untrained.items():
        if key in changes and changes[key][0].kind != "whole":
            changes[key] = resized + changes[key]
    planned = _tied(adapter, base, changes, untrained, equal)
    _check_shapes(adapter, base, planned)
    return planned


def _changes(adapter: Described, base: SafetensorsFolder) -> Iterator[tuple[Change, str]]:
    """Each change, and the name that the model has for the parameter it is about."""
    names = adapter.shapes
    for name in sorted(names):
        short = name.removeprefix(PREFIX)
        module = module_of(name)
        stem = name.partition(".lora_")[0]
        magnitude = f"{stem}.lora_magnitude_vector"
        also = (magnitude,) if magnitude in names else ()
        untrained = next((end for end in UNTRAINED if short.endswith(end)), None)
        if untrained:
            module = short.removesuffix(untrained)
            yield Change(module, "resized", (name,)), f"{module}.weight"
        elif ".base_layer.weight." in short or ".original_module." in short:
            continue  # how bitsandbytes keeps a quantized one; what a trained copy was made of
        elif ".modules_to_save." in short:
            if name.replace(".modules_to_save.", ".") not in names:  # saved once or twice
                yield Change(module, "whole", (name,)), short.replace(".modules_to_save.", ".")
        elif short.endswith(".lora_A.weight"):
            parts = (name, f"{stem}.lora_B.weight", *also)
            yield Change(module, "lora", parts, _is_transposed(adapter, base, module, parts)), f"{module}.weight"
        elif short.endswith(".lora_embedding_A"):
            yield Change(module, "embedding", (name, f"{stem}.lora_embedding_B", *also)), f"{module}.weight"
        elif short.endswith(".lora_B.bias"):
            yield Change(module, "bias", (name,)), f"{module}.bias"
        elif short.endswith(".token_adapter.trainable_tokens_delta"):
            module = short.partition(".token_adapter")[0]
            yield Change(module, "rows", (name,)), f"{module}.weight"
        elif ".lora_" not in short:
            yield Change(module, "whole", (name,)), f"{module}.{short.rpartition('.')[2]}"


def _is_transposed(adapter: Described, base: SafetensorsFolder, module: str, names: tuple[str, ...]) -> bool:
    """The adapter's own fan_in_fan_out says what the last of its layers was, and of 4-bit layers nothing."""
    if base.blueprint.parameters:
        return module in base.blueprint.transposed
    stored = base.entries.get(base.find(f"{module}.weight") or "")
    by_shape = _factored(adapter, names)
    if stored is None or by_shape == by_shape[::-1]:
        return bool(adapter.config.get("fan_in_fan_out"))
    return stored.shape == by_shape[::-1]


def _is_matrix(adapter: Described, change: Change) -> bool:
    """Not so: a convolution, or one of lora.extra.target_parameters, whose factors are laid out differently."""
    parameters = adapter.config.get("target_parameters") or ()
    listed = any(f".{change.module}.weight".endswith(f".{name}") for name in parameters)
    return not listed and len(adapter.shapes[change.names[0]]) == 2


def _factored(adapter: Described, names: tuple[str, ...]) -> tuple[int, int]:
    """(out, in) of the product of two factors (r, in) and (out, r)."""
    return adapter.shapes[names[1]][0], adapter.shapes[names[0]][-1]


def _is_resized(adapter: Described, base: SafetensorsFolder, change: Change, key: str) -> bool:
    """Not so: the base's own weight, or its packed bits."""
    shape, stored = adapter.shapes[change.names[0]], base.source(key).shape
    return len(shape) == len(stored) == 2 and shape[1] == stored[1] and shape[0] != stored[0]


def _tied(
    adapter: Described,
    base: SafetensorsFolder,
    changes: Changes,
    untrained: Changes,
    equal: Callable[[str, str], bool],
) -> Plan:
    """Where embedding and head were one tensor and were trained apart, each becomes a tensor of its own.

    Trained rows stay tied, as peft trains them; so does a head that is saved equal to the embedding.
    """
    embedding, head = base.embedding, base.head
    if not base.tied:
        return Plan(changes, {}, untied=base.blueprint.tied)
    first, second = changes.pop(embedding, []), changes.pop(head, [])
    together = adapter.config.get("ensure_weight_tying") or all(c.kind in ("rows", "resized") for c in first)
    if first and not second:
        second = first if together else untrained.get(embedding, [])
    elif second and not first:
        first = untrained.get(head, [])
    same = [c.kind for c in first] == [c.kind for c in second] and all(
        a == b or equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one.names, other.names, strict=True)
    )
    found = {embedding: first, head: second}
    lacking = [name for name in found if name not in base.entries]
    if same:
        changes |= {name: first for name in found if name not in lacking and first}
        return Plan(changes, {}, untied=False)
    changes |= {name: change for name, change in found.items() if change}
    return Plan(changes, {name: head if name == embedding else embedding for name in lacking}, untied=True)


def shape_of(adapter: Described, base: SafetensorsFolder, planned: Plan, name: str) -> tuple[int, ...]:
    """Of a tensor of the merged model."""
    whole = [c for c in planned.changes.get(name, []) if c.kind in ("whole", "resized")]
    return adapter.shapes[whole[0].names[0]] if whole else base.source(name).shape


def _check_shapes(adapter: Described, base: SafetensorsFolder, planned: Plan) -> None:
    """Raises RunError where the adapter was trained on a model of other sizes than the base."""
    for key, changes in planned.changes.items():
        shape = shape_of(adapter, base, planned, key)
        for change in changes:
            wanted = _wanted(adapter, change, shape)
            if wanted != shape:
                raise RunError(
                    f"The adapter's {change.names[0].removeprefix(PREFIX)} is for a weight of {_sizes(wanted)}, and {key} "
                    f"has {_sizes(shape)}: set model.name_or_path to the model that the adapter was trained on."
                )
    both = [name for name in (base.embedding, base.head) if name in base.entries or name in planned.new]
    rows = [shape_of(adapter, base, planned, name)[0] for name in both]
    before = {base.source(name).shape[0] for name in both}
    if len(set(rows)) > len(before):
        raise RunError(ANOTHER_VOCABULARY)


def _wanted(adapter: Described, change: Change, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight that the change fits, which has `shape`."""
    first = adapter.shapes[change.names[0]]
    if change.kind == "lora":
        factored = _factored(adapter, change.names)
        return factored[::-1] if change.transposed else factored
    if change.kind == "embedding":  # (r, vocabulary) and (width, r)
        return first[-1], adapter.shapes[change.names[1]][0]
    return (shape[0], first[1]) if change.kind == "rows" else first


def _sizes(shape: tuple[int, ...]) -> str:
    return " by ".join(map(str, shape))
