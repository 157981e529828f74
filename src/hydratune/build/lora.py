"""conf/lora -> peft.LoraConfig."""

from typing import Any, cast

from peft import LoraConfig

from hydratune.config.schema import LoraConf


def build_lora(conf: LoraConf) -> LoraConfig | None:
    """None for kind=none (full fine-tuning)."""
    if conf.kind == "none":
        return None
    targets = conf.target_modules
    return LoraConfig(
        r=conf.r,
        lora_alpha=conf.lora_alpha,
        lora_dropout=conf.lora_dropout,
        target_modules=list(targets) if isinstance(targets, list) else targets,
        bias=cast(Any, conf.bias),
        use_rslora=conf.use_rslora,
        use_dora=conf.use_dora,
        init_lora_weights=conf.init_lora_weights,
        modules_to_save=conf.modules_to_save,
        layers_to_transform=conf.layers_to_transform,
        rank_pattern=dict(conf.rank_pattern),
        alpha_pattern=dict(conf.alpha_pattern),
        task_type="CAUSAL_LM",
        **conf.extra,
    )
