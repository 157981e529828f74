"""The adapter against the model's modules and the base's files, without weights."""

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, ConfigError, RunError


def check_adapter(config: Config, model: Any) -> None:
    """Every module that the adapter, or the quantization, names is one of the model's, and peft can adapt it.

    `model` has no weights. Raises ConfigError.
    """
    import torch
    from peft import get_peft_model

    from hydratune.build.lora import build_lora, rows_of_added
    from hydratune.build.model import added_ids, make_room
    from hydratune.build.safetensors_folder import stored_quantized
    from hydratune.build.source import locate

    lora, skipped = config.lora, config.quantization.llm_int8_skip_modules or []
    quantized = getattr(model.config, "quantization_config", None)
    source, gguf = locate(config.model, cache_dir(config))
    try:
        added = added_ids(config.model, source, **gguf)
        built = build_lora(lora, rows_of_added(lora, model, added))
    except (ConfigError, TypeError, ValueError):
        return  # the checks of the tokenizer and of the library's options say it
    if added:
        model = deepcopy(model)
        make_room(model, max(added) + 1)
    if quantized and not gguf:
        raise ConfigError(stored_quantized(source))
    names = [name for name, _ in model.named_modules()]

    def ends(name: str) -> bool:
        return any(module == name or module.endswith(f".{name}") for module in names)

    def matches(pattern: str) -> bool:
        """As peft matches the keys of rank_pattern and alpha_pattern."""
        try:
            return any(re.fullmatch(rf"(.*\.)?({pattern})", module) for module in names)
        except re.error:
            return False

    targets = lora.target_modules if isinstance(lora.target_modules, list) else []
    missing = [("lora.target_modules", name) for name in targets if not ends(name)]
    missing += [("lora.modules_to_save", name) for name in lora.modules_to_save or [] if not ends(name)]
    missing += [("lora.rank_pattern", name) for name in lora.rank_pattern if not matches(name)]
    missing += [("lora.alpha_pattern", name) for name in lora.alpha_pattern if not matches(name)]
    missing += [("quantization.llm_int8_skip_modules", name) for name in skipped if not ends(name)]
    linear = {n.rpartition(".")[2] for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    has = f"the model has {', '.join(sorted(linear - {'lm_head'}))}"
    wrong = [f"{key} names {name!r}, which matches no module of the model: {has}." for key, name in missing]
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    wrong += [
        f"lora.layers_to_transform names layer {number}, and the model has the layers 0 to {layers - 1}."
        for number in lora.layers_to_transform or []
        if not 0 <= number < layers
    ]
    head = _head_of(model)
    if (
        config.quantization.kind != "none"
        and config.quantization.llm_int8_skip_modules is not None
        and head not in skipped
    ):
        wrong.append(
            f"quantization.llm_int8_skip_modules={skipped} leaves {head} to be quantized, from whose weights the loss is "
            f"computed: add {head} there."
        )
    wrong += _rows(config, model, added, getattr(built, "trainable_token_indices", None))
    if not wrong and built is not None:
        try:
            with torch.device("meta"):
                tuned: Any = get_peft_model(deepcopy(model), built)  # the checks below want the model as it was
        except (TypeError, ValueError, re.error) as error:
            said = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
            wrong.append(f"lora.target_modules={lora.target_modules}: {said}; {has}.")
        else:
            adapted = tuned.base_model.targeted_module_names
            wrong += _not_mergeable(config, model, tuned) + _not_pissa(config, model, tuned)
            if any(name.rpartition(".")[2] == head for name in adapted):
                wrong.append(
                    f"lora.target_modules={lora.target_modules} reaches {head}, of which trl trains no adapter: leave it out, "
                    f"or set lora.modules_to_save=[{head}]."
                )
            beside = _beside_the_text(model, adapted)
            if beside:
                wrong.append(
                    f"lora.target_modules={lora.target_modules} reaches {len(beside)} modules that text never does, "
                    f"such as {beside[0]}: set lora=language_model."
                )
    if wrong:
        raise ConfigError(wrong)


def _head_of(model: Any) -> str:
    """The last part of its name."""
    head = model.get_output_embeddings()
    return next((name.rpartition(".")[2] for name, module in model.named_modules() if module is head), "lm_head")


def _rows(config: Config, model: Any, added: Sequence[int], trained: Any) -> list[str]:
    """That embedding and head have the rows that are to be trained, and can be resized; `trained` as peft takes them."""
    from torch import nn

    from hydratune.build.blueprint import blueprint_of

    lora, known = config.lora, blueprint_of(model)
    if not (added or lora.trainable_token_indices):
        return []
    rows, head = model.get_input_embeddings().weight.shape[0], model.get_output_embeddings()
    found = [
        f"lora.trainable_token_indices names token {number}, and the vocabulary has the tokens 0 to {rows - 1}."
        for number in lora.trainable_token_indices or []
        if number >= rows
    ]
    names = [name.removesuffix(".weight") for name in (known.embedding, known.head)]
    embedding, last = (name.rpartition(".")[2] for name in names)
    if lora.trainable_token_indices and embedding in (lora.modules_to_save or []):
        found.append(
            f"lora.modules_to_save={lora.modules_to_save} trains all of {embedding}, and lora.trainable_token_indices some "
            "of its rows: leave one out."
        )
    of_head = bool(trained) and (known.tied or (isinstance(trained, dict) and names[1] in trained))
    if of_head and isinstance(head, nn.Linear) and head.bias is not None:
        found.append(
            f"The model's {last} has a bias, which peft leaves out where it trains rows of it: set "
            f"lora.modules_to_save=[{embedding},{last}]."
        )
    return found


def _not_pissa(config: Config, model: Any, tuned: Any) -> list[str]:
    """That PiSSA can begin in every adapted layer, and be taken back exactly."""
    from hydratune.build.blueprint import blueprint_of
    from hydratune.build.hardware import resolve
    from hydratune.build.pissa import is_pissa, not_by_pissa

    if not is_pissa(config.lora):
        return []
    said = not_by_pissa(tuned, blueprint_of(model).head)
    found = [said] if said else []
    try:
        dtype = resolve(config).dtype
    except ConfigError:
        return found  # said by the check of the hardware
    if dtype != "float32":
        found.append(
            f"lora.init_lora_weights={config.lora.init_lora_weights} takes the adapter out of the base's weights, which "
            f"{dtype} (model.dtype={config.model.dtype}) would round: set model.dtype=float32."
        )
    return found


def _not_mergeable(config: Config, model: Any, tuned: Any) -> list[str]:
    """That what will be trained can't be merged in the way that is asked for, as far as the base's files are here."""
    from peft import get_peft_model_state_dict

    from hydratune.build.blueprint import blueprint_of
    from hydratune.build.merge_plan import plan
    from hydratune.build.mergeable import Described, not_by_peft, unmergeable

    state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    adapter = Described(tuned.peft_config["default"].to_dict(), {name: tuple(t.shape) for name, t in state.items()})
    known = blueprint_of(model)
    refused = unmergeable(adapter, known.parameters)
    if refused is None and config.merge.method == "peft":
        refused = not_by_peft(adapter, known, resized=False)
    if refused:
        return [refused] if "merge" in config.stages else []
    if config.merge.method == "stream":
        try:
            plan(adapter, _base(config, model), lambda *_: False)
        except RunError as error:
            return [str(error)]
    return []


def _base(config: Config, model: Any) -> Any:
    """The base's tensors by their stored names, where its files or their index are on this machine, else by the model's.

    Raises RunError where those files are of no kind that can be merged.
    """
    from huggingface_hub import try_to_load_from_cache

    from hydratune.build.blueprint import blueprint_of
    from hydratune.build.safetensors_folder import INDEX, SafetensorsFolder
    from hydratune.build.source import locate

    source, gguf = locate(config.model, cache_dir(config))
    if gguf:  # saved from the model, before training
        return SafetensorsFolder.of_model(model)
    if Path(source).is_dir():
        return SafetensorsFolder(Path(source), known=blueprint_of(model))
    cached = try_to_load_from_cache(source, INDEX, revision=config.model.revision)
    if not isinstance(cached, str):
        return SafetensorsFolder.of_model(model)
    return SafetensorsFolder.of_model(model, json.loads(Path(cached).read_text(encoding="utf-8"))["weight_map"])


def _beside_the_text(model: Any, adapted: Sequence[str]) -> list[str]:
    """Those of the `adapted` modules that are in another part of the model than its language model: an image encoder."""
    decoder = model.get_decoder()
    if decoder is None or model.config.get_text_config() is model.config:
        return []
    root = next(name for name, module in model.named_modules() if module is decoder)
    return [name for name in adapted if not name.startswith(f"{root}.") and name != "lm_head"]
