"""Generated texts: those of each prompt alone, whatever is shared or batched, ending at the first stop word."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, Lfm2Config, MistralConfig, Phi3Config

from hydratune.build.generating import Generator

LONG = "What is an otter, a violin, a river, and what is bread to a teacher? "
PROMPTS = [LONG + "fern", LONG + "fern and shoulder", LONG + "harbour number 3?", LONG + "a"]


@pytest.fixture
def tools(tiny: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval(), AutoTokenizer.from_pretrained(tiny)


def texts(model: Any, tokenizer: Any, size: int | None, stops: list[str], **options: Any) -> list[str]:
    found: dict[int, str] = {}
    prompts = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in PROMPTS]
    seeds = list(range(len(PROMPTS)))
    Generator(model, tokenizer, size).generate(prompts, 12, stops, {"do_sample": False} | options, seeds, found.update)
    return [found[number] for number in range(len(PROMPTS))]


def alone(model: Any, tokenizer: Any, **options: Any) -> list[str]:
    made = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0, **options)
        made.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return made


@pytest.mark.parametrize("size", [None, 1, 2, 3])
def test_texts_are_those_of_each_prompt_alone(tools: tuple[Any, Any], size: int | None) -> None:
    assert texts(*tools, size, []) == alone(*tools)


def test_what_prompts_begin_with_is_computed_once(tools: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tools
    lengths: list[int] = []
    real = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        lengths.append(kwargs["input_ids"].shape[1])
        return real(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    texts(model, tokenizer, 1, [])
    common = len(tokenizer.encode(LONG, add_special_tokens=False)) - 1
    assert sum(length >= common for length in lengths) == 2  # once to keep, once to prove


def test_a_cache_that_is_not_exact_is_not_used(tools: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right, real = alone(*tools), DynamicCache.update

    def update(self: Any, keys: Any, *rest: Any, **more: Any) -> Any:
        return real(self, keys * (0.2 if keys.shape[2] > 16 else 1.0), *rest, **more)

    monkeypatch.setattr(DynamicCache, "update", update)
    model, tokenizer = tools
    prompts = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in PROMPTS]
    with torch.no_grad():
        assert Generator(model, tokenizer, None)._beginning(prompts) == (0, None)
    monkeypatch.undo()
    assert texts(*tools, None, []) == right


def test_each_row_stops_by_itself(tools: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own criterion waits until all rows hold the same stop word."""
    model, tokenizer = tools
    whole = alone(model, tokenizer)
    stops = [text[4] for text in whole]  # another one for each row
    steps: list[int] = []
    real = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: (steps.append(1), real(*a, **k))[1])
    made = texts(model, tokenizer, None, stops)
    for text, stopped in zip(whole, made, strict=True):
        assert text.startswith(stopped.rstrip("�"))
        assert any(stop in stopped for stop in stops)
    assert len(steps) < 2 + 12, "a batch whose rows have all stopped went on"


def test_drawing_is_the_same_again_and_another_with_another_seed(tools: tuple[Any, Any]) -> None:
    model, tokenizer = tools
    one = texts(model, tokenizer, 2, [], do_sample=True, temperature=2.0)
    assert one == texts(model, tokenizer, 2, [], do_sample=True, temperature=2.0)
    prompts = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in PROMPTS]
    found: dict[int, str] = {}
    Generator(model, tokenizer, 2).generate(
        prompts, 12, [], {"do_sample": True, "temperature": 2.0}, [9, 8, 7, 6], found.update
    )
    assert [found[number] for number in range(4)] != one


def test_behind_a_window_nothing_is_shared(tiny: Path) -> None:
    """Padding between the beginning and the rest would be what the window sees."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=24, pad_token_id=0, max_position_embeddings=512,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    assert texts(model.eval(), tokenizer, None, []) == alone(model, tokenizer)


@pytest.mark.parametrize("size", [None, 3])
def test_rows_that_change_the_others_positions_go_alone(tiny: Path, size: int | None) -> None:
    """Longrope takes its short or its long factors by the longest row of a pass: here some rows begin or get beyond."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    lengths = sorted(len(tokenizer.encode(prompt, add_special_tokens=False)) for prompt in PROMPTS)
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, max_position_embeddings=512,
        original_max_position_embeddings=lengths[1] + 12,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [6.0, 9.0, 12.0, 20.0],
        },
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    assert texts(model.eval(), tokenizer, size, []) == alone(model, tokenizer)


@pytest.mark.parametrize("several", [False, True])
def test_a_token_that_the_arguments_end_at(tools: tuple[Any, Any], several: bool) -> None:
    model, tokenizer = tools
    whole = alone(model, tokenizer)
    ids = tokenizer(PROMPTS[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    end = int(model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] + 3])
    ended = texts(model, tokenizer, None, [], eos_token_id=[end, 0] if several else end)
    assert ended == alone(model, tokenizer, eos_token_id=[end, 0] if several else end)
    assert len(ended[0]) < len(whole[0])


def test_a_model_that_keeps_a_state_shares_nothing(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, layer_types=["conv", "full_attention"], max_position_embeddings=512,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    assert texts(model, tokenizer, 1, []) == alone(model, tokenizer)


def test_beams_share_nothing(tools: tuple[Any, Any]) -> None:
    assert texts(*tools, None, [], num_beams=2) == texts(*tools, 1, [], num_beams=2)
