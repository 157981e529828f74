"""The three models of a run: its base, the base with the adapter as it was trained, and the merged folder."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from hydratune.build.hardware import Hardware
from hydratune.build.model import load_model, load_plain
from hydratune.config.schema import Config


def adapter_model(config: Config, adapter: Path, hardware: Hardware, source: str) -> PeftModel:
    """Loaded from disk, its base quantized as in training, in evaluation mode."""
    base = load_model(config.model, source, hardware, config.quantization)
    return PeftModel.from_pretrained(base, str(adapter)).eval()


def named_model(
    name: str, config: Config, hardware: Hardware, source: str, adapter: Path, merged: Path
) -> PreTrainedModel | PeftModel:
    """`base`, as downloaded and unquantized, `adapter` or `merged`, in evaluation mode."""
    if name == "base":
        return load_model(config.model, source, hardware).eval()
    if name == "adapter":
        return adapter_model(config, adapter, hardware, source)
    return load_plain(str(merged), hardware.dtype, hardware.device)
