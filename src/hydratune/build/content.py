"""Which model it is: digests over all bytes of its weights, each file read once."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from hydratune.build.hardware import Hardware
from hydratune.build.identity import tokenizer_digest, versions
from hydratune.config.schema import Config

METHOD = 4  # raise it when the same model would give other answers
DECIDING = ("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "**/*.py")


def folder_digest(folder: Path, cache: Path) -> str:
    """16 hexadecimal digits over a model's or adapter's folder; a file's digest is kept while its time and size stand."""
    whole = xxh3_128()
    for path in sorted({path for name in DECIDING for path in folder.glob(name)}):
        whole.update(f"{path.relative_to(folder)} {_file_digest(path, cache)}\n".encode())
    return whole.hexdigest()[:16]


def _file_digest(path: Path, cache: Path) -> str:
    real = path.resolve()
    state = real.stat()
    memo = [str(real), state.st_size, state.st_mtime_ns, state.st_ino]
    kept = cache / "digests" / xxh3_128(json.dumps(memo).encode()).hexdigest()
    if kept.is_file() and len(known := kept.read_text()) == 32:
        return known
    with real.open("rb") as file:
        found = hashlib.file_digest(file, xxh3_128).hexdigest()
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(found)  # a cut one has another length
    return found


def answering(
    name: str,
    config: Config,
    hardware: Hardware,
    source: str,
    commit: str | None,
    tokenizer: Any,
    folders: dict[str, Path],
    cache: Path,
) -> dict[str, Any]:
    """Everything that decides what the model `name` (base, adapter, merged) answers to a text.

    `commit`: of a base on the hub. `folders`: those of adapter and merged.
    """
    loaded: dict[str, Any] = {"dtype": hardware.dtype}
    if name != "merged":
        base = Path(source)
        loaded["base"] = folder_digest(base, cache) if base.is_dir() else f"{source} {commit}"
        loaded["extra"] = {key: value for key, value in config.model.extra.items() if key != "token"}
    if name != "base":
        loaded[name] = folder_digest(folders[name], cache)
    if name == "adapter" and config.quantization.kind != "none":
        loaded["quantization"] = asdict(config.quantization) | {"compute_dtype": hardware.compute_dtype}
    return loaded | {
        "tokenizer": tokenizer_digest(tokenizer),
        "special_tokens": [tokenizer.special_tokens_map, tokenizer.eos_token_id, tokenizer.bos_token_id],
        "device": hardware.device,
        "attn_implementation": hardware.attn_implementation,
        "versions": {library: versions()[library] for library in ("torch", "transformers", "peft", "bitsandbytes")},
        "method": METHOD,
    }
