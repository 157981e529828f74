"""The adapter against the model's modules and the base's files, without weights."""

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
    from peft.tuners.lora import LoraModel

    from hydratune.build.lora import build_lora

    lora, skipped = config.lora, config.quantization.llm_int8_skip_modules or []
    try:
        built = build_lora(lora)
    except (TypeError, ValueError):
        return  # the check of the library's options says it
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
    if not wrong and built is not None:
        try:
            with torch.device("meta"):
                adapted = LoraModel(deepcopy(model), built, "default").targeted_module_names
        except (TypeError, ValueError, re.error) as error:
            said = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
            wrong.append(f"lora.target_modules={lora.target_modules}: {said}; {has}.")
        else:
            wrong += _not_mergeable(config, adapted)
            beside = _beside_the_text(model, adapted)
            if beside:
                wrong.append(
                    f"lora.target_modules={lora.target_modules} reaches {len(beside)} modules that text never does, "
                    f"such as {beside[0]}: set lora=language_model."
                )
    if wrong:
        raise ConfigError(wrong)


def _not_mergeable(config: Config, adapted: Sequence[str]) -> list[str]:
    """That a weight which will be trained has no tensor of its own in the base's files, as far as those are here."""
    from hydratune.build.safetensors_folder import SafetensorsFolder
    from hydratune.build.source import locate

    source, gguf = locate(config.model, cache_dir(config))
    if config.merge.method == "peft" or gguf or not Path(source).is_dir():
        return []
    try:
        base = SafetensorsFolder(Path(source))
    except RunError as error:
        return [str(error)]
    lost = [name for name in adapted if base.find(f"{name}.weight") is None and f"{name}.weight" != base.head]
    if not lost:
        return []
    return [f"{len(lost)} adapted modules, such as {lost[0]}, can't be merged tensor by tensor: set merge.method=peft."]


def _beside_the_text(model: Any, adapted: Sequence[str]) -> list[str]:
    """Those of the `adapted` modules that are in another part of the model than its language model: an image encoder."""
    decoder = model.get_decoder()
    if decoder is None or model.config.get_text_config() is model.config:
        return []
    root = next(name for name, module in model.named_modules() if module is decoder)
    return [name for name in adapted if not name.startswith(f"{root}.") and name != "lm_head"]
