"""conf/model -> a transformers model and tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hydratune.build.chat_template import give_defaults, named_template
from hydratune.build.hardware import Hardware
from hydratune.build.quantization import build_quantization, keep_gradients_on_cpu, quick_on_cpu
from hydratune.build.source import not_loaded
from hydratune.config.schema import ConfigError, ModelConf, QuantizationConf


def load_tokenizer(conf: ModelConf, source: str, **gguf: str) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template that the run asks for. Raises ConfigError where there is none."""
    tokenizer = _own_tokenizer(conf, source, **gguf)
    _add(tokenizer, conf.add_tokens)
    if conf.chat_template:
        tokenizer.chat_template = named_template(conf.chat_template)
    if not tokenizer.chat_template:
        raise ConfigError(f"The tokenizer of {source} has no chat template: set model.chat_template=FILE.jinja.")
    if conf.chat_template_kwargs:
        give_defaults(tokenizer, conf.chat_template_kwargs)
    return _padded(tokenizer)


def load_model(
    conf: ModelConf, source: str, hardware: Hardware, quantization: QuantizationConf | None = None
) -> PreTrainedModel:
    """The model in the settled dtype, on the settled device; quantized where `quantization` says so."""
    with quick_on_cpu():
        model = AutoModelForCausalLM.from_pretrained(
            source,
            revision=conf.revision,
            dtype=getattr(torch, hardware.dtype),
            attn_implementation=hardware.attn_implementation,
            quantization_config=build_quantization(quantization, hardware.compute_dtype) if quantization else None,
            trust_remote_code=conf.trust_remote_code,
            use_safetensors=True,  # other files may hold code
            device_map=conf.device_map or ({"": torch.cuda.current_device()} if hardware.device == "cuda" else None),
            **conf.extra,
        )
    keep_gradients_on_cpu(model)
    added = added_ids(conf, source)
    if added:
        make_room(model, max(added) + 1)
    return model


def added_ids(conf: ModelConf, source: str, **gguf: str) -> list[int]:
    """Ids of those of `add_tokens` that the model's own tokenizer lacks."""
    return _add(_own_tokenizer(conf, source, **gguf), conf.add_tokens) if conf.add_tokens else []


def make_room(model: PreTrainedModel, rows: int) -> None:
    """Resize embedding and head where they have fewer rows; each new row is the mean of the others.

    transformers' own resizing draws them at random, and the stages, which each load the model, would have others.
    A mean bounds how much the other tokens' probabilities move (nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    known: Any = model
    before = known.get_input_embeddings().weight.shape[0]
    if rows <= before:
        return
    known.resize_token_embeddings(rows, mean_resizing=False)
    for part in (known.get_input_embeddings(), known.get_output_embeddings()):  # one tensor where they are tied
        for values in part.parameters() if part is not None else ():
            if not values.is_meta:
                values.data[before:] = values.data[:before].float().mean(0).to(values.dtype)


def load_plain(
    folder: str,
    dtype: torch.dtype | str,
    device: torch.device | str,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    **placement: Any,
) -> PreTrainedModel:
    """A transformers folder as any other tool would load it, in evaluation mode.

    `placement`: device_map and what goes with it, in place of `device`.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        **placement,
    )
    return (model if placement else model.to(device)).eval()


def run_tokenizer(conf: ModelConf, folders: Sequence[Path]) -> PreTrainedTokenizerBase | None:
    """The tokenizer that training saved, from the first of `folders` that holds one: it needs nothing of the base."""
    for folder in folders:
        if (folder / "tokenizer_config.json").is_file():
            found: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=conf.trust_remote_code)
            if found.chat_template:
                return _padded(found)
    return None


def _own_tokenizer(conf: ModelConf, source: str, **gguf: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(
            source,
            revision=conf.revision,
            trust_remote_code=conf.trust_remote_code,
            token=conf.extra.get("token"),
            **gguf,
        )
    except (OSError, ValueError) as error:
        raise not_loaded("tokenizer", source, error) from None


def _add(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Make special tokens of those that the vocabulary lacks; returns their ids."""
    known = tokenizer.get_vocab() if tokens else {}
    new = [token for token in tokens if token not in known]
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in new]


def _padded(tokenizer: Any) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return cast(PreTrainedTokenizerBase, tokenizer)
