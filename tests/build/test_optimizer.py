"""LoRA+: two learning rates, each on the schedule, for any optimizer, and the same ones after a stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments
from transformers import Trainer as PlainTrainer

from hydratune.build.optimizer import LoraPlus, loraplus_groups

ROWS = [{"input_ids": torch.arange(3 + n, 13 + n), "labels": torch.arange(3 + n, 13 + n)} for n in range(8)]


class Trainer(LoraPlus, PlainTrainer):
    pass


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    plain = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    )
    settings: dict[str, Any] = {"target_modules": "all-linear", "bias": "none"} | options
    return get_peft_model(plain, LoraConfig(r=4, task_type="CAUSAL_LM", **settings))


class Rates(TrainerCallback):
    """The rates with which each step was taken."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def trained(folder: Path, ratio: float | None, resume: bool = False, **options: Any) -> tuple[Any, list[list[float]]]:
    settings = {"max_steps": 6, "save_steps": 3, "learning_rate": 1e-3, "lr_scheduler_type": "linear", **options}
    rates = Rates()
    args = TrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True, **settings)
    trainer = Trainer(model(), args, train_dataset=ROWS, callbacks=[rates])  # type: ignore[arg-type]
    trainer.loraplus_lr_ratio = ratio
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return trainer, rates.seen


def learnt(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_b_has_its_ratio_of_the_rate_at_every_step(tmp_path: Path) -> None:
    trainer, rates = trained(tmp_path, 16.0, warmup_steps=2)
    by_name = {id(p): name for name, p in trainer.model.named_parameters()}
    found = [{by_name[id(p)].rsplit(".", 3)[1] for p in group["params"]} for group in trainer.optimizer.param_groups]
    assert found == [{"lora_A"}, {"lora_B"}]
    assert [a for a, _ in rates] == pytest.approx([0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert [b for _, b in rates] == pytest.approx([16 * a for a, _ in rates])


def test_with_a_ratio_of_1_it_is_what_it_was(tmp_path: Path) -> None:
    options: dict[str, Any] = {"weight_decay": 0.1, "optim": "adamw_torch"}
    without, with_it = (learnt(trained(tmp_path, ratio, **options)[0]) for ratio in (None, 1.0))
    other = learnt(trained(tmp_path, 2.0, **options)[0])
    assert all(torch.equal(one, with_it[name]) for name, one in without.items())
    assert not all(torch.equal(one, other[name]) for name, one in without.items())


def test_the_first_step_of_b_is_ratio_times_as_long(tmp_path: Path) -> None:
    """AdamW's first step has the length of the rate, whatever the gradient."""
    start = {name: p.detach().clone() for name, p in model().named_parameters()}
    after = learnt(trained(tmp_path, 16.0, max_steps=1, learning_rate=1e-3, lr_scheduler_type="constant")[0])
    moved = [(one - start[name]).abs().max().item() for name, one in after.items() if "lora_B" in name]
    assert moved == pytest.approx([16e-3] * len(moved), rel=0.01)


def test_a_run_that_goes_on_ends_where_it_would_have(tmp_path: Path) -> None:
    whole, rates = trained(tmp_path, 16.0)
    again, after = trained(tmp_path, 16.0, resume=True)
    assert after == rates[3:]
    assert all(torch.equal(one, learnt(again)[name]) for name, one in learnt(whole).items())


OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adamw_8bit", "paged_adamw_8bit", "lion_32bit")


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_the_optimizer_is_the_one_that_was_named(optim: str, tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], optim=optim, adam_beta1=0.8)
    made = []
    for ratio in (None, 4.0):
        trainer = Trainer(model(), args, train_dataset=ROWS)  # type: ignore[arg-type]
        trainer.loraplus_lr_ratio = ratio
        made.append(trainer.create_optimizer())
    plain, plus = made
    assert type(plus) is type(plain)
    assert plus.defaults == plain.defaults
    assert [group["lr"] for group in plus.param_groups] == pytest.approx([args.learning_rate, 4 * args.learning_rate])
    assert sorted(p.numel() for g in plus.param_groups for p in g["params"]) == sorted(
        p.numel() for g in plain.param_groups for p in g["params"]
    )


@pytest.mark.parametrize(
    ("options", "of_b"),
    [
        ({"use_dora": True}, lambda name: "lora_B" in name or "magnitude" in name),
        ({"bias": "all"}, lambda name: "lora_B" in name or name.endswith(".bias")),
        ({"modules_to_save": ["lm_head"]}, lambda name: "lora_B" in name),
        ({"trainable_token_indices": [3]}, lambda name: "lora_B" in name),
        ({"target_modules": ["q_proj", "embed_tokens"]}, lambda name: "lora_B" in name),
    ],
)
def test_every_trained_parameter_is_in_one_group(options: dict[str, Any], of_b: Callable[[str], bool]) -> None:
    tuned = model(**options)
    trained = {id(p): name for name, p in tuned.named_parameters() if p.requires_grad}
    groups = loraplus_groups(tuned, 1e-3, 8.0, 0.1)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(trained)
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (8e-3 if of_b(trained[id(parameter)]) else 1e-3), trained[id(parameter)]
            assert group["weight_decay"] == (0.0 if trained[id(parameter)].endswith(".bias") else 0.1)
