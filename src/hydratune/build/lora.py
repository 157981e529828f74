"""conf/lora -> peft.LoraConfig."""

from collections.abc import Sequence
from typing import Any, cast

from peft import LoraConfig
from peft.utils.other import TrainableTokensWrapper

from hydratune.build.blueprint import blueprint_of
from hydratune.build.pissa import is_pissa
from hydratune.config.schema import LoraConf


def build_lora(conf: LoraConf, rows: dict[str, list[int]] | None = None) -> LoraConfig | None:
    """None for kind=none (full fine-tuning); `rows` that are trained where the configuration names none."""
    if conf.kind == "none":
        return None
    targets = conf.target_modules
    tokens = rows if conf.trainable_token_indices is None else conf.trainable_token_indices
    return LoraConfig(
        r=conf.r,
        lora_alpha=conf.lora_alpha,
        lora_dropout=conf.lora_dropout,
        target_modules=list(targets) if isinstance(targets, list) else targets,
        bias=cast(Any, conf.bias),
        use_rslora=conf.use_rslora,
        use_dora=conf.use_dora,
        # build/pissa.py sets the factors, once: training that goes on has others by then
        init_lora_weights=True if is_pissa(conf) else conf.init_lora_weights,
        trainable_token_indices=tokens or None,
        modules_to_save=conf.modules_to_save,
        layers_to_transform=conf.layers_to_transform,
        rank_pattern=dict(conf.rank_pattern),
        alpha_pattern=dict(conf.alpha_pattern),
        task_type="CAUSAL_LM",
        **conf.extra,
    )


def rows_of_added(conf: LoraConf, model: Any, added: Sequence[int]) -> dict[str, list[int]]:
    """Module -> the rows of `added` tokens that peft is to train, of embedding and of a head that is not tied to it.

    Not of those that are trained anyway, whole or by an adapter of their own.
    """
    known = blueprint_of(model)
    parts = [known.embedding] + ([] if known.tied else [known.head])
    names = [part.removesuffix(".weight") for part in parts if part]
    targets = conf.target_modules if isinstance(conf.target_modules, list) else []
    trained = [*(conf.modules_to_save or []), *targets]
    return {
        name: list(added)
        for name in names
        if added and not any(name == one or name.endswith(f".{one}") for one in trained)
    }


def complete_head(model: Any) -> None:
    """Give the head the `bias` that trl's loss reads: peft's wrapper of one with trained rows has only its weight."""
    head = model.get_base_model().get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper):
        cast(Any, head).bias = None  # the check of the adapter refuses rows of a head with one, which peft drops
