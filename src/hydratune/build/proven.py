"""Answers of earlier proofs (build/proofs.py), kept in the cache beside everything that decides them."""

import hashlib
import inspect
import json
import os
import platform
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel

from hydratune.build.hardware import Hardware
from hydratune.build.identity import versions
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config

Answer = TypeVar("Answer", str, bool)
CODE = ("attention.py", "batches.py", "collate.py", "lean_loss.py", "proofs.py", "proven.py", "trainer.py")
# what a model's configuration tells of its files and not of what it computes
NAMES = ("_name_or_path", "_commit_hash", "transformers_version")
OF_MODEL = ("attn_implementation", "add_tokens", "device_map", "dtype", "extra")
OF_TRAINER = ("extra", "fsdp", "gradient_checkpointing", "max_length", "torch_compile")


@dataclass
class Proven:
    """The answers to questions about one architecture under one set of settings.

    A proof is of code, architecture and settings, and not of weights: rows see one another, or the head's output is
    changed, by what a model computes and not by the numbers that it computes with. So the answers hold for every model
    of the same class and configuration, with the same adapter, libraries and kind of processor. A weight that is a
    single number may be a gate or a scale, which one checkpoint uses and another doesn't: it is part of the key.
    """

    path: Path | None  # where they are kept; None where they must not be
    answers: dict[str, Any] = field(default_factory=dict)
    new: bool = False

    def answer(self, question: str, possible: Collection[Answer], prove: Callable[[], Answer]) -> Answer:
        """As kept, where that is one of the `possible` ones; else as `prove` says."""
        found: Any = self.answers.get(question)
        if not isinstance(found, str | bool) or found not in possible:
            found = self.answers[question] = prove()
            self.new = True
        return cast(Answer, found)

    def keep(self) -> None:
        """For the next run. A cache that can't be written costs it a second, and this one nothing."""
        if self.path and self.new:
            with suppress(OSError):
                _write(self.path, json.dumps(self.answers))


def proven(config: Config, hardware: Hardware, pad_token_id: int, model: Any) -> Proven:
    """What is known of `model`, with or without adapter, as it is about to be trained."""
    if config.model.trust_remote_code or config.trainer.callbacks or config.data.formatter:
        return Proven(None)  # code that no version tells has been imported, and may have changed the model's
    network = model.get_base_model() if isinstance(model, PeftModel) else model
    path = cache_dir(config) / "proofs" / f"{_key(config, hardware, pad_token_id, network)}.json"
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or damaged
        answers = None
    return Proven(path, answers if isinstance(answers, dict) else {})


def _key(config: Config, hardware: Hardware, pad_token_id: int, network: Any) -> str:
    kind = type(network)
    settings = {name: value for name, value in network.config.to_dict().items() if name not in NAMES}
    cuda = hardware.device == "cuda"
    what = [
        [_digest(Path(__file__).with_name(name)) for name in CODE],
        versions(),
        [kind.__module__, kind.__qualname__, _digest(Path(inspect.getfile(kind)))],
        settings,
        {name: tensor.item() for name, tensor in _tensors(network) if tensor.numel() == 1},
        pad_token_id,
        {name: getattr(config.model, name) for name in OF_MODEL},
        asdict(config.quantization),
        asdict(config.lora),
        [config.data.packing, config.data.padding_free],
        {name: getattr(config.trainer, name) for name in OF_TRAINER},
        asdict(hardware),
        [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.cuda.get_device_name() if cuda else None],
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _tensors(network: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, text: str) -> None:
    """Whole or not at all, whoever writes the same at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
