"""Scores of continuations: equal to plain forward passes one by one, whatever is shared, in one line or padded."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from hydratune.build.halving import in_batches
from hydratune.build.scoring import Pair, Score, Scorer, build_trees
from hydratune.config.schema import RunError

SIZE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [6.0, 9.0, 12.0, 20.0],
    "original_max_position_embeddings": 24,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZE),
    "qwen3": Qwen3Config(**SIZE),
    "gemma3": Gemma3TextConfig(**SIZE, sliding_window=128),
    "window": MistralConfig(**SIZE, sliding_window=12),
    "longrope": LlamaConfig(**SIZE, rope_parameters=LONGROPE),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=256),
}
LENGTH = 100


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation="sdpa")
    for parameter in model.parameters():  # far from uniform, so that each token that is seen too much shows
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def pairs() -> list[Pair]:
    """Contexts that begin alike, continuations of one and several tokens, some the beginning of others, one too long."""
    draw = random.Random(1)
    first = [draw.randrange(96) for _ in range(9)]
    found: list[Pair] = []
    for length in (3, 11, 11, 20):
        context = first + [draw.randrange(96) for _ in range(length)]
        ending = [draw.randrange(96) for _ in range(5)]
        found += [(context, ending[:count]) for count in (1, 2, 5)]
        found += [(context, [draw.randrange(96) for _ in range(count)]) for count in (1, 3, 4)]
    found.append(([1], [draw.randrange(96) for _ in range(30)]))
    found.append(([draw.randrange(96) for _ in range(2 * LENGTH)], [7, 8]))
    found.append(found[0])
    return found


@torch.no_grad()
def alone(model: Any, pair: Pair) -> Score:
    ids = torch.tensor([(pair[0] + pair[1])[-(LENGTH + 1) :][:-1]])
    logits = model(input_ids=ids).logits[0, -len(pair[1]) :].log_softmax(-1)
    tokens = torch.tensor(pair[1])
    return float(logits.gather(-1, tokens[:, None]).sum()), bool((logits.argmax(-1) == tokens).all())


def score(scorer: Scorer, asked: list[Pair]) -> list[Score]:
    found: dict[int, Score] = {}
    scorer.score(asked, found.update)
    assert sorted(found) == list(range(len(asked)))
    return [found[number] for number in range(len(asked))]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("size", [None, 1, 3])
def test_scores_are_those_of_each_sequence_alone(kind: str, size: int | None) -> None:
    model, asked = model_of(kind), pairs()
    scorer = Scorer(model, size, LENGTH)
    for ours, other in zip(score(scorer, asked), [alone(model, pair) for pair in asked], strict=True):
        assert ours[0] == pytest.approx(other[0], abs=2e-3, rel=1e-4)
        assert ours[1] == other[1]
    # GPT-2 takes rows in one line too; what sees only so many tokens before it, or turns by the longest row, does not
    assert scorer.proven == (kind not in ("window", "longrope"))


def test_padded_where_the_line_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that lets rows in one line see one another gives the same scores, the other way."""
    from hydratune.build import attention

    model, asked = model_of("llama"), pairs()
    right = [alone(model, pair) for pair in asked]

    def leaks(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    attention.AttentionInterface.register("leaks", leaks)
    attention.AttentionMaskInterface.register("leaks", attention._no_mask)
    monkeypatch.setattr(attention, "NAME", "leaks")
    scorer = Scorer(model, None, LENGTH)
    assert [one[0] for one in score(scorer, asked)] == pytest.approx([one[0] for one in right], abs=2e-3)
    assert not scorer.in_line


def test_a_shared_context_is_computed_once() -> None:
    context = list(range(40))
    trees = build_trees([(context, [1, 2, 3]), (context, [1, 2, 4]), (context, [5]), (context, [1, 6])], 100, True)
    (tree,) = trees
    assert tree.tokens == len(context) + 2 + 1  # the branches 1 2 and 1
    assert [tree.predicted_at(continuation) for _, continuation in tree.asked] == [[0, 1, 2], [0, 1, 2], [0], [0, 3]]
    apart = build_trees([(context, [1, 2, 3]), (context, [1, 2, 4]), (context, [5])], 100, False)
    assert [tree.tokens for tree in apart] == [42, 40]


def test_out_of_memory_halves_the_batches() -> None:
    done: list[list[int]] = []

    def work(some: Any) -> None:
        if len(some) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        done.append(list(some))

    in_batches(list(range(20)), lambda some: len(some) <= 16, work)
    assert [number for batch in done for number in batch] == list(range(20))
    assert max(map(len, done)) == 2  # 16, 8, 4, 2


def test_one_request_that_does_not_fit(tmp_path: Path) -> None:
    def work(some: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    with pytest.raises(RunError, match="too small for a single request"):
        in_batches([1, 2], lambda some: True, work)
    with pytest.raises(RuntimeError, match="another"):
        in_batches([1], lambda some: True, lambda some: (_ for _ in ()).throw(RuntimeError("another")))


@pytest.mark.parametrize("length", [0, LENGTH + 1])
def test_what_the_model_can_not_take(length: int) -> None:
    with pytest.raises(RunError, match=f"the likelihood of {length} tokens at once, and the model takes 1 to 100"):
        build_trees([([1, 2], [3] * length)], LENGTH, True)
