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
        task_type="CAUSAL_LM",
        **conf.extra,
    )
