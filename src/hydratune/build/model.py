"""conf/model -> a transformers model and tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hydratune.build.hardware import Hardware
from hydratune.build.quantization import build_quantization, keep_gradients_on_cpu
from hydratune.build.source import not_loaded
from hydratune.config.schema import ConfigError, ModelConf, QuantizationConf

TEMPLATES = Path(__file__).resolve().parents[1] / "chat_templates"


def load_tokenizer(conf: ModelConf, source: str, **gguf: str) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template that the run asks for. Raises ConfigError where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            revision=conf.revision,
            trust_remote_code=conf.trust_remote_code,
            token=conf.extra.get("token"),
            **gguf,
        )
    except (OSError, ValueError) as error:
        raise not_loaded("tokenizer", source, error) from None
    if conf.chat_template:
        ours = TEMPLATES / f"{conf.chat_template}.jinja"
        path = ours if ours.is_file() else Path(conf.chat_template)
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
            raise ConfigError(f"model.chat_template={conf.chat_template} is neither a file nor one of ours: {names}.")
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise ConfigError(f"The tokenizer of {source} has no chat template: set model.chat_template=FILE.jinja.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_model(
    conf: ModelConf, source: str, hardware: Hardware, quantization: QuantizationConf | None = None
) -> PreTrainedModel:
    """The model in the settled dtype, on the settled device; quantized where `quantization` says so."""
    model = AutoModelForCausalLM.from_pretrained(
        source,
        revision=conf.revision,
        dtype=getattr(torch, hardware.dtype),
        attn_implementation=hardware.attn_implementation,
        quantization_config=build_quantization(quantization, hardware.compute_dtype) if quantization else None,
        trust_remote_code=conf.trust_remote_code,
        use_safetensors=True,  # other files may hold code
        device_map=conf.device_map or ({"": 0} if hardware.device == "cuda" else None),
        **conf.extra,
    )
    keep_gradients_on_cpu(model)
    return model


def load_plain(folder: str, dtype: torch.dtype | str, device: torch.device | str) -> PreTrainedModel:
    """A transformers folder as any other tool would load it, in evaluation mode."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return model.to(device).eval()
