"""The lean loss and the attention of single rows give what the plain ones give, and where they would not, it is seen."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from hydratune.build import attention, lean_loss
from hydratune.build.attention import each_row_alone, fit_in_line
from hydratune.build.batches import Batches
from hydratune.build.collate import IGNORED, Collator
from hydratune.build.lean_loss import add_lean_loss, head_is_all
from hydratune.build.proofs import as_lean, seen

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "head_dim": 8,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "Qwen3Config": {"tie_word_embeddings": True},
    "Gemma3TextConfig": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "MistralConfig": {"sliding_window": 16},
}
# what does more with the head's output than the lean loss knows: a cap, a scale
FURTHER: dict[str, dict[str, Any]] = {
    "RecurrentGemmaConfig": {"lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3},
    "Gemma2Config": {"final_logit_softcapping": 0.05},
    "CohereConfig": {"logit_scale": 0.25},
    "GraniteConfig": {"logits_scaling": 8.0},
}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [6.0] * 4,
    "original_max_position_embeddings": 16,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}
BY_LAYER = {"sliding_attention": PLAIN_ROPE, "full_attention": LONGROPE | {"original_max_position_embeddings": 15}}
LINE = Collator(0, separate=True, flatten=True, lengths=True)
LENGTHS = (9, 1, 6, 13)


def build(name: str, **changed: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**SIZES, **MODELS.get(name, {}), **changed})
    kind = "eager" if name == "Gemma2Config" else "sdpa"
    return AutoModelForCausalLM.from_config(config, attn_implementation=kind).to(torch.float32)


def rows() -> list[dict[str, list[int]]]:
    """Of each length; a third of the tokens have no label."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in LENGTHS:
        ids = torch.randint(3, 64, (length,), generator=generator)
        labels = ids.where(torch.rand(length, generator=generator) > 0.3, IGNORED)
        made.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return made


def tuned(model: PreTrainedModel, how: str) -> Any:
    if how == "whole":
        return model
    further: dict[str, Any] = {
        "lora": {}, "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
        "head saved": {"modules_to_save": ["lm_head"]},
    }[how]  # fmt: skip
    return get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **further))


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("at_once", [2**25, 64 * 3], ids=["whole", "in pieces"])
@pytest.mark.parametrize("how", ["whole", "lora", "lora on the head", "head saved"])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_single_rows_and_whole_logits(
    name: str, how: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows in one line, and each by itself through the model's own forward."""
    monkeypatch.setattr(lean_loss, "AT_ONCE", at_once)
    model = tuned(build(name), how).to(torch.float64)  # in float32 each processor's own rounding nears the tolerance
    base = model if how == "whole" else model.get_base_model()
    plain = torch.zeros((), dtype=torch.float64)
    for row in rows():
        batch = Collator(0)([row])
        targets = batch.pop("labels")
        if (targets[:, 1:] != IGNORED).any():
            logits = model(**batch, use_cache=False).logits[0, :-1]
            plain = plain + cross_entropy(logits, targets[0, 1:], ignore_index=IGNORED, reduction="sum")
    wanted = gradients(model, plain)
    add_lean_loss(base)
    with each_row_alone(model.config):
        lean = model(**LINE(rows()), lean_loss=True)
        found = gradients(model, lean * 0.5)  # as a loss that is divided by the number of tokens
    torch.testing.assert_close(lean.double(), plain, rtol=1e-5, atol=0)
    assert found.keys() == wanted.keys() and len(found) > 2
    for name_, gradient in found.items():
        torch.testing.assert_close(2 * gradient, wanted[name_], rtol=1e-4, atol=1e-6)


def test_nothing_supervised_is_a_zero_that_trains_nothing() -> None:
    model = tuned(build("LlamaConfig"), "lora")
    add_lean_loss(model.get_base_model())
    batch = Collator(0)(rows())
    loss = model(**{**batch, "labels": torch.full_like(batch["labels"], IGNORED)}, lean_loss=True)
    assert float(loss.detach()) == 0
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


def test_without_gradients_none_are_made() -> None:
    model = build("LlamaConfig").eval()
    plain = model(**Collator(0)(rows()), num_items_in_batch=1).loss
    add_lean_loss(model)
    with torch.no_grad():
        lean = model(**Collator(0)(rows()), lean_loss=True)
    assert not lean.requires_grad
    torch.testing.assert_close(lean, plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [*MODELS, *FURTHER])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_proof_tells_where_the_head_is_not_all(name: str, dtype: torch.dtype) -> None:
    model = build(name, **FURTHER.get(name, {})).to(dtype)
    plain = model(**Collator(0)(rows())).loss
    add_lean_loss(model)
    assert (head_is_all(model.config) and as_lean(model, seen(model, Collator(0)))) == (name in MODELS)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(**Collator(0)(rows())).loss, plain)  # the model's own forward is still there


def test_the_proof_sees_what_no_setting_tells() -> None:
    """Code that scales the logits by a number of its own."""
    model: Any = build("LlamaConfig")
    model.forward = scaled(model.forward)
    add_lean_loss(model)
    assert head_is_all(model.config) and not as_lean(model, seen(model, Collator(0)))


def scaled(forward: Any) -> Any:
    def changed(*args: Any, **kwargs: Any) -> Any:
        made = forward(*args, **kwargs)
        made.logits = made.logits * 4
        return made

    return changed


@pytest.mark.parametrize(
    ("name", "changed", "right"),
    [
        *((name, {}, True) for name in MODELS),
        ("MixtralConfig", {}, True),
        (
            "OPTConfig",
            {"ffn_dim": 64, "word_embed_proj_dim": 32},
            True,
        ),  # though its mask would let rows see each other
        ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0}, True),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, False),
    ],
)
def test_rows_alone_are_proven_or_not_used(name: str, changed: dict[str, Any], right: bool) -> None:
    model = build(name, **changed)
    before = model.config.get_text_config()._attn_implementation
    assert Batches(LINE, "in one line").right_in(model) == right
    assert model.config.get_text_config()._attn_implementation == before
    model.eval()
    with torch.no_grad():
        alone = [model(**Collator(0)([row]), use_cache=False).logits[0] for row in rows()]
        with each_row_alone(model.config):
            line = model(**LINE(rows()), use_cache=False).logits[0].split(LENGTHS)
    same = [torch.allclose(*pair, atol=1e-5) for pair in zip(line, alone, strict=True)]
    assert all(same) == right


@pytest.mark.parametrize("unknown", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}])
def test_what_the_attention_does_not_know_is_refused(unknown: dict[str, Any]) -> None:
    states = torch.zeros(1, 4, 5, 8)
    known = attention._of_rows(torch.nn.Module(), states, states, states, None, seq_lengths=[2, 3])
    assert known[0].shape == (1, 5, 4, 8)
    for wrong in ({"seq_lengths": [2, 3], **unknown}, {"seq_lengths": [2, 3], "sliding_window": 2}, {}):
        with pytest.raises(NotImplementedError):
            attention._of_rows(torch.nn.Module(), states, states, states, None, **wrong)


@pytest.mark.parametrize(
    ("name", "window", "whole"),
    [
        ("LlamaConfig", {}, True), ("MistralConfig", {"sliding_window": 16}, True),
        ("MistralConfig", {"sliding_window": 15}, False), ("Llama4TextConfig", {"attention_chunk_size": 8}, False),
        ("LlamaConfig", {"rope_parameters": LONGROPE}, True),
        ("LlamaConfig", {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 15}}, False),
        ("LlamaConfig", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}, True),
        ("LlamaConfig", {"rope_parameters": DYNAMIC, "max_position_embeddings": 15}, False),
        ("LlamaConfig", {"rope_parameters": DYNAMIC | {"rope_type": "yarn"}, "max_position_embeddings": 15}, True),
        ("Gemma3TextConfig", {"sliding_window": 16, "rope_parameters": BY_LAYER}, False),
    ],
)  # fmt: skip
def test_rows_beyond_a_window_or_that_change_the_others_are_left_out_of_the_line(
    name: str, window: dict[str, Any], whole: bool
) -> None:
    """Some models have the window in their mask alone, where the attention of single rows would not see it."""
    assert fit_in_line(getattr(transformers, name)(**{**SIZES, **window}), 16) == whole


@pytest.mark.parametrize("checkpointing", [False, True])
def test_attention_dropout_and_checkpointed_layers(checkpointing: bool) -> None:
    """A layer that runs again in the backward pass has the attention of the forward pass."""
    found = []
    for collator in (LINE, Collator(0, separate=True, flatten=True)):
        model = build("LlamaConfig").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = collator(rows())
        with each_row_alone(model.config) if collator is LINE else nullcontext():
            found.append(gradients(model, model(**batch, use_cache=False).loss))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-7)
