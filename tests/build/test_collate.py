"""Packed rows train a model exactly as the same rows do alone; and where they would not, the proof says so."""

from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hydratune.build.collate import IGNORED, Collator
from hydratune.build.proofs import separates
from hydratune.build.quantization import keep_gradients_on_cpu

PACKS = [[7, 12, 1], [9, 5]]  # tokens of each row in each pack
PADDED = Collator(0)
COLLATORS = [Collator(0, separate=True), Collator(0, separate=True, flatten=True)]
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
SLIDING = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, dict[str, Any]] = {
    "LlamaConfig": {**SMALL, "num_hidden_layers": 2},
    "Qwen3Config": {**GROUPED, "num_hidden_layers": 2},
    "Gemma3TextConfig": {**GROUPED, "num_hidden_layers": 2, "sliding_window": 4, "layer_types": SLIDING},
    "MistralConfig": {**GROUPED, "num_hidden_layers": 2, "sliding_window": 4},
    # whose own loss, with the router's logits, balances the tokens of all rows
    "MixtralConfig": {**GROUPED, "num_hidden_layers": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1},
    "GPT2Config": {
        "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
}  # fmt: skip
DENSE = [name for name in CONFIGS if name != "MixtralConfig"]


def build(name: str, attention: str = "sdpa", **changed: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**CONFIGS.get(name, SMALL), **changed})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.to(torch.float32)


def random_rows() -> list[dict[str, list[int]]]:
    """One of each length in PACKS. A third of the tokens have no label."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in chain(*PACKS):
        ids = torch.randint(3, 64, (length,), generator=generator)
        labels = ids.where(torch.rand(length, generator=generator) > 0.3, IGNORED)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


ROWS = random_rows()
PACKED = [
    {name: list(chain(*(row[name] for row in rows))) for name in ROWS[0]} | {"seq_lengths": pack}
    for rows, pack in zip((ROWS[:3], ROWS[3:]), PACKS, strict=True)
]


def in_rows(batch: torch.Tensor, collator: Collator) -> list[torch.Tensor]:
    """A batch's tensor of shape (B, T, ...), cut into the rows that were packed."""
    lengths = [list(chain(*PACKS))] if collator.flatten else PACKS
    return [
        line[end - n : end]
        for line, pack in zip(batch, lengths, strict=True)
        for n, end in zip(pack, accumulate(pack), strict=True)
    ]


def test_padding_is_that_of_trl() -> None:
    theirs = DataCollatorForLanguageModeling(pad_token_id=5)(ROWS)
    ours = Collator(5)(ROWS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


def test_rows_of_a_pack() -> None:
    features = [
        {"input_ids": [11, 12, 13, 21, 22], "labels": [11, 12, 13, 21, -100], "seq_lengths": [3, 2]},
        {"input_ids": [31, 32], "labels": [31, 32]},
    ]
    batch = Collator(9, separate=True)(features)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[11, 12, 13, 21, 22], [31, 32, 9, 9, 9]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]],
        "labels": [[-100, 12, 13, -100, -100], [-100, 32, -100, -100, -100]],
    }
    batch = Collator(9, separate=True, flatten=True)(features)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[11, 12, 13, 21, 22, 31, 32]],
        "position_ids": [[0, 1, 2, 0, 1, 0, 1]],
        "labels": [[-100, 12, 13, -100, -100, -100, 32]],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_a_line_whose_rows_see_each_other_is_refused() -> None:
    with pytest.raises(ValueError, match="flatten=True needs separate=True"):
        Collator(0, flatten=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DENSE)
def test_a_packed_row_is_the_row_alone(name: str, attention: str) -> None:
    model = build(name, attention)
    for training in (True, False):
        model.train(training)
        with torch.set_grad_enabled(training):
            alone = [model(**PADDED([row]), use_cache=False, num_items_in_batch=1) for row in ROWS]
            for collator in COLLATORS:
                batch = collator(PACKED)
                packed = model(**batch, use_cache=False, num_items_in_batch=1)  # a loss that is a sum
                for one, row in zip(alone, in_rows(packed.logits, collator), strict=True):
                    torch.testing.assert_close(row, one.logits[0], atol=1e-5, rtol=0)
                torch.testing.assert_close(packed.loss, sum(one.loss for one in alone), rtol=1e-5, atol=0)
                supervised = sum(label != IGNORED for row in ROWS for label in row["labels"][1:])
                assert batch["labels"].ne(IGNORED).sum() == batch["labels"][:, 1:].ne(IGNORED).sum() == supervised


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_proof_finds_rows_apart(name: str, attention: str, dtype: torch.dtype) -> None:
    model = build(name, attention).to(dtype)
    assert all(separates(model, collator) for collator in COLLATORS)
    assert not separates(model, PADDED)


@pytest.mark.parametrize("collator", COLLATORS)
def test_the_proof_finds_a_mask_that_someone_else_fills_in(collator: Collator) -> None:
    model = build("LlamaConfig")

    def fill_in(_module: Any, args: Any, inputs: dict[str, Any]) -> Any:
        return args, {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}

    model.register_forward_pre_hook(fill_in, with_kwargs=True)
    assert not separates(model, collator)


# what separates no rows here, on a processor at least: state space, convolution; and what may or may not
OTHERS: dict[str, dict[str, Any]] = {
    "MambaConfig": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "Lfm2Config": {**GROUPED, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "OPTConfig": {**SMALL, "num_hidden_layers": 2, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "GptOssConfig": {**GROUPED, "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("collator", COLLATORS)
@pytest.mark.parametrize("name", OTHERS)
def test_the_proof_says_what_is_so(name: str, collator: Collator) -> None:
    model = build(name, "eager", **OTHERS[name]).eval()
    with torch.no_grad():
        packed = in_rows(model(**collator(PACKED), use_cache=False).logits, collator)
        alone = [model(**PADDED([row]), use_cache=False).logits[0] for row in ROWS]
    apart = all(torch.allclose(*pair, atol=1e-5) for pair in zip(packed, alone, strict=True))
    assert separates(model, collator) == apart
    assert not (apart and name in ("MambaConfig", "Lfm2Config"))


def adapted(model: PreTrainedModel) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


@pytest.mark.parametrize("collator", COLLATORS)
def test_the_proof_leaves_no_trace(collator: Collator) -> None:
    model = adapted(build("LlamaConfig")).train()
    random = torch.get_rng_state()
    with torch.no_grad():
        assert separates(model, collator)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks
    assert not separates(model.eval(), PADDED) and not model.training


@pytest.fixture(scope="session")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama, wide enough for bitsandbytes' packed path, some of whose activations LLM.int8 takes for outliers."""
    folder = tmp_path_factory.mktemp("outliers")
    model: Any = build("LlamaConfig", hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    for layer in model.model.layers:
        layer.input_layernorm.weight.data[:4] = 20
    model.save_pretrained(folder)
    return folder


def quantized(folder: Path, **how: Any) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**how)
    )
    keep_gradients_on_cpu(model)
    return model


def test_the_proof_needs_no_tolerance_for_int8(outliers: Path) -> None:
    """Though one row's outliers change how the others are rounded."""
    model = adapted(quantized(outliers, load_in_8bit=True))
    assert separates(model, COLLATORS[0]) and not separates(model, PADDED)


def test_gradients_of_four_bits_survive_the_proof(outliers: Path) -> None:
    found = []
    for proves in (False, True):
        model = adapted(quantized(outliers, load_in_4bit=True, bnb_4bit_quant_type="nf4"))
        assert not proves or (separates(model, COLLATORS[0]) and not separates(model, PADDED))
        torch.manual_seed(0)
        model.train()(**COLLATORS[0](PACKED), use_cache=False).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert found[0].norm() > 0
    assert torch.equal(*found)


def trained(
    tiny: Path, out: Path, features: list[dict[str, list[int]]], collator: Collator | None, batch: int, steps: int = 1
) -> dict[str, float]:
    """The losses of a step of `steps` batches and of an evaluation, as the trainer logs them; None: trl's collator."""
    data = Dataset.from_dict({name: [feature[name] for feature in features] for name in features[0]})
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny),
        args=SFTConfig(
            output_dir=str(out), max_steps=1, per_device_train_batch_size=batch, per_device_eval_batch_size=5,
            gradient_accumulation_steps=steps, use_cpu=True, bf16=False, report_to=[], logging_steps=1,
            save_strategy="no", disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=data,
        eval_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(tiny),
        data_collator=collator,
    )  # fmt: skip
    assert collator is None or not collator.separate or separates(trainer.model, collator)
    evaluated = trainer.evaluate()
    trainer.train()
    step = next(row for row in trainer.state.log_history if "grad_norm" in row)
    return {"eval_loss": evaluated["eval_loss"], **{name: step[name] for name in ("loss", "grad_norm", "num_tokens")}}


def test_the_trainer_finds_the_losses_of_the_rows(tiny: Path, tmp_path: Path) -> None:
    padded = trained(tiny, tmp_path, ROWS, None, 5)
    assert padded["num_tokens"] == 34
    for collator, features, batch, accumulated, tokens in [
        (PADDED, ROWS, 5, 1, 34),
        (COLLATORS[0], PACKED, 2, 1, 20),  # of a batch that isn't flat, trl counts the length alone
        (COLLATORS[0], PACKED, 1, 2, 34),
        (COLLATORS[1], PACKED, 2, 1, 34),
        (COLLATORS[1], PACKED, 1, 2, 34),
        (COLLATORS[1], ROWS, 5, 1, 34),
    ]:
        found = trained(tiny, tmp_path, features, collator, batch, accumulated)
        assert found == pytest.approx({**padded, "num_tokens": tokens}, rel=1e-5)
