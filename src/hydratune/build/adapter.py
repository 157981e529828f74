"""The three models of a run: its base, the base with the adapter as it was trained, and the merged folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel

from hydratune.build.hardware import Hardware
from hydratune.build.mergeable import ANOTHER_VOCABULARY, CHANGES_MODEL, PREFIX
from hydratune.build.model import load_model, load_plain
from hydratune.config.schema import Config, ModelConf, RunError

PLACING = ("max_memory", "offload_folder", "offload_buffers")  # of model.extra, what goes with a device_map


def adapter_model(config: Config, adapter: Path, hardware: Hardware, source: str) -> PeftModel:
    """Loaded from disk, its base quantized as in training, in evaluation mode."""
    base = load_model(config.model, source, hardware, config.quantization)
    return with_adapter(base, adapter).eval()


def with_adapter(base: PreTrainedModel, adapter: Path) -> PeftModel:
    """`base`, changed in place: with the adapter's layers, and its vocabulary where that was resized for training.

    Raises RunError where the adapter doesn't hold all of the resized one.
    """
    rows = resized_rows(base, adapter)
    if rows:
        known: Any = base
        tied = known.get_output_embeddings().weight is known.get_input_embeddings().weight
        base.resize_token_embeddings(rows[0], mean_resizing=False)
        if len(rows) == 1 and not tied:
            raise RunError(ANOTHER_VOCABULARY)
    return PeftModel.from_pretrained(base, str(adapter))


def resized_rows(base: Any, adapter: Path) -> list[int]:
    """How many rows the adapter has for the embedding and for the head, where those are not the base's."""
    found = []
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        names = sorted(file.keys())
        for part in (base.get_input_embeddings(), base.get_output_embeddings()):
            if part is None:
                continue
            rows, width = part.weight.shape
            start = next(f"{PREFIX}{name}." for name, module in base.named_modules() if module is part)
            held = [n for n in names if n.startswith(start) and n.endswith(".weight") and ".lora_" not in n]
            shapes = [shape for name in held if len(shape := file.get_slice(name).get_shape()) == 2]
            found += [shape[0] for shape in shapes if shape[0] != rows and shape[1] == width][:1]
    return found


def switches_off(adapter: Path) -> bool:
    """Whether the adapter's layers, switched off, leave the base: no trained bias, other vocabulary or more layers."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        embeddings = [n for n in file.keys() if ".lora_" not in n and ("embed" in n or "head" in n)]  # noqa: SIM118
    kept = settings.get("bias", "none") == "none" and not any(settings.get(option) for option in CHANGES_MODEL)
    return kept and not embeddings


def keep_vocabulary(model: Any, adapter: Path, added: Sequence[int]) -> None:
    """Save the adapter again, with embedding and head as they were resized for `added` tokens.

    peft does so by itself only where it can read the base's configuration, and not of a hub id without the hub.
    """
    if added and max(added) + 1 == model.get_input_embeddings().weight.shape[0]:
        model.save_pretrained(str(adapter), save_embedding_layers=True)


def named_model(
    name: str, config: Config, hardware: Hardware, source: str, adapter: Path, merged: Path
) -> PreTrainedModel | PeftModel:
    """`base`, as downloaded and unquantized, `adapter` or `merged`, in evaluation mode."""
    if name == "base":
        return load_model(config.model, source, hardware).eval()
    if name == "adapter":
        return adapter_model(config, adapter, hardware, source)
    return load_plain(
        str(merged),
        hardware.dtype,
        hardware.device,
        config.model.trust_remote_code,
        hardware.attn_implementation,
        **_placement(config.model),
    )


def _placement(conf: ModelConf) -> dict[str, Any]:
    """Where the layers of the merged model go, as those of the base; empty for one device."""
    if not conf.device_map:
        return {}
    return {"device_map": conf.device_map} | {key: conf.extra[key] for key in PLACING if key in conf.extra}
