"""A model folder of safetensors, one file or shards: read by tensor, written by tensor, copied by byte."""

import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from hydratune.build.blueprint import Blueprint, blueprint, blueprint_of
from hydratune.config.schema import RunError

INDEX = "model.safetensors.index.json"
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
CODES = {dtype: code for code, dtype in TYPES.items()}
# what transformers calls the parts of a multimodal model -> what its checkpoints are stored under
STORED_AS = (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))
CHUNK = 1 << 24  # bytes


def stored_quantized(source: str) -> str:
    """The refusal of a base that nothing can be merged onto."""
    return (
        f"The weights of {source} are stored quantized, which no adapter can be merged into: set model.name_or_path to "
        "the model that they were made from."
    )


@dataclass(frozen=True)
class Entry:
    """A tensor to write: computed by `value`, row block by row block, or copied from `file`, `length` bytes at `start`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    value: Callable[[], Iterator[Tensor]] | None = None
    file: Path | None = None
    start: int = 0
    length: int = 0

    def renamed(self, name: str) -> "Entry":
        return replace(self, name=name)

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class SafetensorsFolder:
    """The weights of a plain transformers model, and its configuration.

    Raises RunError where the folder holds no safetensors, or a model that is stored quantized.
    """

    def __init__(self, folder: Path, trust_remote_code: bool = False, known: Blueprint | None = None) -> None:
        """`known`: what the model's code says of its weights, where it was asked before."""
        self.folder = folder
        self._trust, self._known = trust_remote_code, known
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if self.config.get("quantization_config"):
            raise RunError(stored_quantized(str(folder)))
        index = folder / INDEX
        if index.is_file():
            files = list(dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            files = ["model.safetensors"]
        if not all((folder / file).is_file() for file in files):
            raise RunError(f"{folder} holds no model.safetensors and no {INDEX} with all its shards.")
        self.shards: dict[str, list[str]] = {}
        self.entries: dict[str, Entry] = {}
        for file in sorted(files):
            found = _header(folder / file)
            self.shards[file] = [entry.name for entry in found]
            self.entries |= {entry.name: entry for entry in found}

    @classmethod
    def of_model(cls, model: Any, stored: Collection[str] | None = None) -> "SafetensorsFolder":
        """As `model` would be saved, without weights; of its parameters only those that are among the names `stored`."""
        made = cls.__new__(cls)
        made._known = blueprint_of(model)
        made.entries = {name: Entry(name, torch.uint8, ()) for name in stored or ()}
        parameters = [
            (name, parameter) for name, parameter in model.named_parameters() if not stored or made.find(name)
        ]
        made.entries = {name: Entry(name, parameter.dtype, tuple(parameter.shape)) for name, parameter in parameters}
        return made

    @cached_property
    def blueprint(self) -> Blueprint:
        """What the model's code says of its weights; what config.json lets guess where that code can't be had."""
        found = self._known or blueprint(self.folder, self._trust)
        if found:
            return found
        names = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
        embedding = next((name for name in self.entries if name.endswith(names)), "")
        text = self.config.get("text_config", self.config)
        tied = self.config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        return Blueprint(frozenset(), frozenset(), embedding, "lm_head.weight", bool(tied and embedding))

    def find(self, parameter: str) -> str | None:
        """The name under which a parameter of the model is stored; None where it isn't."""
        candidates = [parameter, parameter.partition(".")[2]]  # a checkpoint may lack the prefix of the base model
        candidates += [
            stored + parameter.removeprefix(name) for name, stored in STORED_AS if parameter.startswith(name)
        ]
        return next((name for name in candidates if name in self.entries), None)

    def source(self, name: str) -> Entry:
        """What is stored under `name`, or the other of embedding and head, which are tied where one is not stored."""
        other = self.embedding if name == self.head else self.head
        return self.entries.get(name) or self.entries[other]

    def tensor(self, name: str) -> Tensor:
        """Memory-mapped."""
        file = self.entries[name].file
        assert file is not None
        with safe_open(file, "pt") as opened:
            found: Tensor = opened.get_tensor(name)
            return found

    @property
    def embedding(self) -> str:
        """The name under which the input embedding is stored, or would be."""
        return self.find(self.blueprint.embedding) or self.blueprint.embedding

    @property
    def head(self) -> str:
        """The name under which the output layer's weight is stored, or would be."""
        return self.find(self.blueprint.head) or self.blueprint.head

    @cached_property
    def tied(self) -> bool:
        """Whether embedding and head are one tensor once loaded: tied in the configuration, and not stored different."""
        stored = [name for name in (self.embedding, self.head) if name in self.entries]
        if not self.blueprint.tied or not stored:
            return False
        return len(stored) == 1 or torch.equal(self.tensor(stored[0]), self.tensor(stored[1]))

    def changed_config(self, dtype: torch.dtype | None, untied: bool, vocabulary: int | None) -> dict[str, Any]:
        """config.json of the merged model."""
        config: dict[str, Any] = json.loads(json.dumps(self.config))
        for part in (config, config.get("text_config")):
            if not isinstance(part, dict):
                continue
            if dtype is not None:
                part.pop("torch_dtype", None)
                part["dtype"] = str(dtype).removeprefix("torch.")
            if untied:
                part["tie_word_embeddings"] = False
            if vocabulary and "vocab_size" in part:
                part["vocab_size"] = vocabulary
        return config


def _header(path: Path) -> list[Entry]:
    """The tensors of a file, in the order in which they lie there."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    found = []
    for name, facts in header.items():
        if name != "__metadata__":
            begin, end = facts["data_offsets"]
            shape = tuple(facts["shape"])
            found.append(Entry(name, TYPES[facts["dtype"]], shape, None, path, 8 + size + begin, end - begin))
    return sorted(found, key=lambda entry: entry.start)


def write_folder(out: Path, files: list[str], shards: list[list[Entry]]) -> None:
    """Write the shards and, where there are several, their index; all of it is on the disk when this returns."""
    total = 0
    weight_map: dict[str, str] = {}
    for name, entries in zip(files, shards, strict=True):
        _write(out / name, entries)
        total += sum(entry.bytes for entry in entries)
        weight_map |= {entry.name: name for entry in entries}
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(path: Path, entries: list[Entry]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.bytes
        header[entry.name] = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            if entry.value is None:
                _copy(entry, file)
            else:
                written = sum(file.write(_bytes(block)) for block in entry.value())
                assert written == entry.bytes, entry.name
        file.flush()
        os.fsync(file.fileno())


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _copy(entry: Entry, to: BinaryIO) -> None:
    """The bytes of a tensor, without a detour through this process where the system can."""
    assert entry.file is not None
    to.flush()
    with entry.file.open("rb") as source:
        done = 0
        try:
            while done < entry.length:
                got = os.copy_file_range(
                    source.fileno(), to.fileno(), min(CHUNK * 8, entry.length - done), entry.start + done
                )
                if not got:
                    break
                done += got
        except OSError:  # between file systems, or on one that can't
            pass
        to.seek(0, os.SEEK_END)
        source.seek(entry.start + done)
        while done < entry.length:
            part = source.read(min(CHUNK, entry.length - done))
            to.write(part)
            done += len(part)
