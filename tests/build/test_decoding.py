"""Decoding in line: the tokens of each prompt alone, with rows that come and go, and tokens that are guessed."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from hydratune.build import decoding
from hydratune.build.decoding import Decoder, decodes_right, is_greedy

SIZE = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZE),
    "qwen3": Qwen3Config(**SIZE, head_dim=8),
}
NEW = 24
BEGINNING = list(range(10))
PROMPTS = [[*BEGINNING, 11 + n, *range(20, 23 + 2 * n)] for n in range(9)]


def model_of(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def alone(model: Any, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(NEW):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("slots", "guessed"), [(1, 32), (3, 32), (3, 0), (9, 64)])
def test_tokens_are_those_of_each_prompt_alone(
    kind: str, slots: int, guessed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "GUESSED", guessed)
    model = model_of(CONFIGS[kind])
    right = [alone(model, prompt) for prompt in PROMPTS]
    end = right[4][NEW // 2]  # some end early, and another takes their place
    right = [until(tokens, end) for tokens in right]
    assert len({len(tokens) for tokens in right}) > 1
    shared = len(BEGINNING)
    assert decodes_right(model, PROMPTS, shared)
    found: dict[int, list[int]] = {}
    decoder = Decoder(model, PROMPTS, shared, slots, NEW)
    decoder.decode(range(len(PROMPTS)), lambda made: made[-1] == end, found.update)
    assert [found[number] for number in range(len(PROMPTS))] == right


def test_what_is_guessed_right_takes_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CONFIGS["llama"])
    steps: list[int] = []
    real = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: (steps.append(k["input_ids"].shape[1]), real(*a, **k))[1])
    prompt = PROMPTS[0] + alone(model, PROMPTS[0])  # decoding repeats itself
    right = alone(model, prompt)
    counts = []
    for guessed in (0, 32):
        monkeypatch.setattr(decoding, "GUESSED", guessed)
        steps.clear()
        found: dict[int, list[int]] = {}
        Decoder(model, [prompt], 0, 1, NEW).decode([0], lambda made: False, found.update)
        assert found[0] == right
        counts.append(len(steps))
    assert counts[1] < counts[0] == NEW


def test_a_model_that_keeps_a_state_is_not_right() -> None:
    config = Lfm2Config(**SIZE, layer_types=["conv", "full_attention"])
    assert not decodes_right(model_of(config), PROMPTS, len(BEGINNING))


def test_a_past_that_is_not_exact_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CONFIGS["llama"])
    real = decoding.Past.step

    def step(self: Any, module: Any, query: Any, key: Any, value: Any, scaling: Any) -> Any:
        return real(self, module, query, key * 0.2, value, scaling)

    monkeypatch.setattr(decoding.Past, "step", step)
    assert not decodes_right(model, PROMPTS, len(BEGINNING))


def test_prompts_that_are_too_short_to_prove_anything() -> None:
    assert not decodes_right(model_of(CONFIGS["llama"]), [[1, 2, 3]], 0)


@pytest.mark.parametrize(
    ("options", "settings", "greedy"),
    [
        ({"do_sample": False}, {}, True),
        ({"do_sample": False, "top_p": 0.9}, {"temperature": 0.6, "top_k": 20}, True),
        ({"do_sample": True}, {}, False),
        ({}, {}, False),
        ({"do_sample": False, "num_beams": 2}, {}, False),
        ({"do_sample": False}, {"repetition_penalty": 1.1}, False),
        ({"do_sample": False}, {"suppress_tokens": [3]}, False),
    ],
)
def test_what_is_greedy(options: dict[str, Any], settings: dict[str, Any], greedy: bool) -> None:
    model = model_of(CONFIGS["llama"])
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    assert is_greedy(model, options) == greedy
