"""Which way rows become batches, where a long row would change what the others mean."""

from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from hydratune.build.batches import build_batches
from hydratune.build.hardware import Hardware
from hydratune.build.proven import Proven
from hydratune.config.schema import Config, RunError

ORIGINAL = 24
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [6.0, 9.0, 12.0, 20.0],
    "original_max_position_embeddings": ORIGINAL,
}  # fmt: skip


def chosen(max_length: int, attention: str = "sdpa", **data: Any) -> str:
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=256, rope_parameters=dict(LONGROPE),
        ),
        attn_implementation="sdpa",
    )  # fmt: skip
    config = Config()
    config.trainer.max_length = max_length
    for key, value in data.items():
        setattr(config.data, key, value)
    hardware = Hardware("cpu", "float32", "float32", "float32", "adamw_torch", attention)
    return build_batches(config, hardware, 0, model, Proven(None)).name


def test_a_row_that_changes_the_others_positions_is_put_in_no_line() -> None:
    assert chosen(ORIGINAL) == chosen(ORIGINAL, packing=True) == "in one line, each row alone"
    assert chosen(ORIGINAL + 1) == chosen(ORIGINAL + 1, "flash_attention_2") == "padded"


@pytest.mark.parametrize("typed", ["packing", "padding_free"])
def test_nor_where_a_line_is_asked_for(typed: str) -> None:
    with pytest.raises(RunError) as refused:
        chosen(ORIGINAL + 1, **{typed: True})
    assert str(refused.value) == (
        "In this model a row of more than 24 tokens changes what it makes of the shorter ones in its line: set "
        "trainer.max_length=24, or data.packing=false and data.padding_free=false."
    )
