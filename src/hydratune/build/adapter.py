"""The model as it was trained: its base, quantized as in training, and the adapter."""

from pathlib import Path

from peft import PeftModel

from hydratune.build.hardware import Hardware
from hydratune.build.model import load_model
from hydratune.config.schema import Config


def adapter_model(config: Config, adapter: Path, hardware: Hardware, source: str) -> PeftModel:
    """Loaded from disk, in evaluation mode."""
    base = load_model(config.model, source, hardware, config.quantization)
    return PeftModel.from_pretrained(base, str(adapter)).eval()
