"""Which run a checkpoint is of: what it must fit to before anything goes on from it."""

import json
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase
from xxhash import xxh3_128

from hydratune.build.hardware import Hardware
from hydratune.config.schema import Config, RunError

FILE = "identity.json"
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")


def of_run(
    config: Config, hardware: Hardware, source: str, model: Any, tokenizer: PreTrainedTokenizerBase, tokens: str
) -> dict[str, Any]:
    """What a checkpoint fits to, by the names that a sentence calls it. `tokens` is the token cache's key."""
    whole = {
        "the model": _model(source, config.model.revision, model.config),
        "the tokenizer": tokenizer_digest(tokenizer),
        "the rows' tokens": tokens.partition("-")[0],  # what they are, and not where
        **{f"lora.{key}": value for key, value in asdict(config.lora).items()},
        **{f"quantization.{key}": value for key, value in asdict(config.quantization).items()},
        "the weights' type": hardware.dtype,
        "the type of 4-bit products": hardware.compute_dtype if config.quantization.kind in ("nf4", "fp4") else None,
        "trainer.precision": hardware.precision,
        "trainer.optim": hardware.optim,
        "the number of processes": hardware.world_size,
    }
    return cast(dict[str, Any], json.loads(json.dumps(whole, default=str)))


def _model(source: str, revision: str | None, settings: Any) -> str:
    """Of a folder its files, of the hub the commit, where transformers tells it."""
    if Path(source).is_dir():
        return f"files {_folder_digest(Path(source))}"
    return f"{source} {getattr(settings, '_commit_hash', None) or revision}"


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hexadecimal digits over how it makes tokens of a text, and its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    how = json.loads(backend.to_str()) if backend else tokenizer.get_vocab()
    told = {key: value for key, value in how.items() if key not in ("truncation", "padding")}  # of its last call
    return sha256(json.dumps([told, tokenizer.chat_template], sort_keys=True).encode()).hexdigest()[:16]


def _folder_digest(folder: Path) -> str:
    """Of a model's configuration and weights; of large files 32 pieces, which no training leaves as they were."""
    digest = xxh3_128()
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
        size, piece = path.stat().st_size, 2**20
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in range(0, size, max(piece, size // 32)):
                file.seek(place)
                digest.update(file.read(piece))
    return digest.hexdigest()[:16]


def check(path: Path, now: dict[str, Any], say: Callable[[str], None]) -> None:
    """Raises RunError where the checkpoint is of another model, tokenizer, adapter, data or way of computing."""
    saved = json.loads((path / FILE).read_text(encoding="utf-8"))
    then = saved["identity"]
    differs = [f"{key} was {then[key]} and is {now[key]}" for key in now if key in then and then[key] != now[key]]
    if differs:
        raise RunError(
            f"{path.name} is not of what would be trained here: {'; '.join(differs)}. Bring back what it was trained "
            "with, or begin in another run_dir."
        )
    for library, new in versions().items():
        old = saved["versions"].get(library, new)
        if old != new:
            say(
                f"  {path.name} was written with {library} {old}, and this is {new}: losses may differ in the last digits"
            )


def versions() -> dict[str, str]:
    return {library: version(library) for library in LIBRARIES}
