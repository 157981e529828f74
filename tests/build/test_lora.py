"""Each kind of adapter trains, each of its tensors moves, and what it learnt is merged into its base to the digit."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from hydratune.build.adapter import keep_vocabulary, named_model, with_adapter
from hydratune.build.hardware import resolve
from hydratune.build.model import added_ids, load_model, load_tokenizer
from hydratune.config.rules import broken_rules
from hydratune.config.saved import put
from hydratune.config.schema import Config, ConfigError
from hydratune.preflight import check
from hydratune.run.layout import RunDir
from hydratune.stages import merge, prepare, train
from tests.conftest import chat_rows

pytestmark = pytest.mark.slow

ADDED = ["<|think|>", "</s>", "<|end_think|>"]  # the second is no new one


@dataclass(frozen=True)
class Kind:
    """What is trained on which base, and what then holds of the names and shapes of the adapter's tensors."""

    settings: dict[str, Any]
    holds: Callable[[dict[str, torch.Size]], bool] = lambda shapes: True
    base: str = "plain"
    untrained: tuple[str, ...] = field(default=())  # ends of the names of tensors that are saved as they were


def named(shapes: dict[str, torch.Size], part: str) -> dict[str, torch.Size]:
    return {name: shape for name, shape in shapes.items() if part in name}


def has(part: str, count: int, *shape: int) -> Callable[[dict[str, torch.Size]], bool]:
    """`count` tensors with `part` in their names, all of this shape where one is given."""

    def holds(shapes: dict[str, torch.Size]) -> bool:
        found = named(shapes, part)
        return len(found) == count and all(not shape or tuple(one) == shape for one in found.values())

    return holds


TOKENS = {"model.add_tokens": ADDED}
RESIZED = (".token_adapter.base_layer.weight",)
KINDS: dict[str, Kind] = {
    "lora": Kind({}, has("lora_A", 14)),
    "gaussian": Kind({"lora.init_lora_weights": "gaussian"}),
    "rslora": Kind({"lora.use_rslora": True}),
    "dora": Kind({"lora.use_dora": True}, has("lora_magnitude_vector", 14)),
    "loraplus": Kind({"lora.loraplus_lr_ratio": 16.0}, has("lora_A", 14)),
    "pissa": Kind({"lora.init_lora_weights": "pissa"}, has("q_proj.lora_A", 2, 8, 32)),
    "pissa of everything": Kind(
        {
            "lora.init_lora_weights": "pissa_niter_4", "lora.use_rslora": True, "lora.use_dora": True, "lora.bias": "all",
            "lora.rank_pattern": {"q_proj": 2}, "lora.alpha_pattern": {"v_proj": 3}, "lora.modules_to_save": ["lm_head"],
        },
        lambda shapes: has("q_proj.lora_A", 2, 4, 32)(shapes) and has("v_proj.lora_A", 2, 8, 32)(shapes),
        "biased",
    ),
    "patterns": Kind(
        {"lora.rank_pattern": {"q_proj": 2, "0.*down_proj": 3}, "lora.alpha_pattern": {"v_proj": 5}},
        lambda shapes: has("q_proj.lora_A", 2, 2, 32)(shapes) and has("0.mlp.down_proj.lora_A", 1, 3, 64)(shapes),
    ),
    "layers": Kind(
        {"lora.layers_to_transform": [1], "lora.target_modules": ["q_proj", "up_proj"]},
        lambda shapes: len(shapes) == 4 and not named(shapes, "layers.0"),
    ),
    "whole modules": Kind(
        {"lora.modules_to_save": ["lm_head", "model.norm"]},
        lambda shapes: has("lm_head", 1)(shapes) and has("model.norm", 1, 32)(shapes),
    ),
    "all biases": Kind({"lora.bias": "all", "lora.target_modules": ["q_proj"]}, has(".bias", 14), "biased"),
    "biases of the adapted": Kind({"lora.bias": "lora_only", "lora.target_modules": ["down_proj"]}, has(".bias", 2), "biased"),
    "rows of tokens": Kind({"lora.trainable_token_indices": [3, 70, 299]}, has("trainable_tokens_delta", 1, 3, 32)),
    "rows of tokens, tied": Kind(
        {"lora.trainable_token_indices": [3, 70, 299]}, has("trainable_tokens_delta", 1, 3, 32), "tied"
    ),
    "added tokens": Kind(TOKENS, has("trainable_tokens_delta", 2, 2, 32), untrained=RESIZED),
    "added tokens, tied": Kind(TOKENS, has("trainable_tokens_delta", 2, 2, 32), "tied", RESIZED),
    "added tokens, trl's own loss": Kind(
        {**TOKENS, "trainer.lean_loss": False}, has("trainable_tokens_delta", 2, 2, 32), untrained=RESIZED
    ),
    "added tokens, tied, trl's own loss": Kind(
        {**TOKENS, "trainer.lean_loss": False}, has("trainable_tokens_delta", 2, 2, 32), "tied", RESIZED
    ),
    "added tokens on nf4": Kind(
        {**TOKENS, "quantization.kind": "nf4"}, has("trainable_tokens_delta", 2, 2, 32), "tied", RESIZED
    ),
    "added tokens of whole modules": Kind(
        {**TOKENS, "lora.modules_to_save": ["embed_tokens", "lm_head"]}, has("trainable_tokens_delta", 0),
        untrained=(".original_module.weight",),
    ),
    "added tokens, by peft": Kind(
        {**TOKENS, "merge.method": "peft"}, has("trainable_tokens_delta", 2, 2, 32), "tied", RESIZED
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain, biased and tied: folders of the tiny model's size; rows.jsonl, whose answers think."""
    folder = tmp_path_factory.mktemp("bases")
    settings: dict[str, dict[str, Any]] = {
        "plain": {}, "biased": {"attention_bias": True, "mlp_bias": True}, "tied": {"tie_word_embeddings": True}
    }  # fmt: skip
    for name, options in settings.items():
        shutil.copytree(tiny, folder / name)
        torch.manual_seed(1)
        model: Any = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny, **options))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim == 1 else None
        model.save_pretrained(folder / name)
    shutil.copytree(tiny, folder / "head with a bias")
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    PhiForCausalLM(PhiConfig(vocab_size=357, **size)).save_pretrained(folder / "head with a bias")
    rows = chat_rows()
    for row in rows:
        row["messages"][-1]["content"] = f"<|think|>{row['messages'][-1]['content']}<|end_think|>"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def configured(bases: Path, base: str, run: Path, settings: dict[str, Any]) -> Config:
    config = Config()
    shared = {
        "model.name_or_path": str(bases / base), "data.path": str(bases / "rows.jsonl"), "lora.kind": "lora", "lora.r": 4,
        "lora.lora_alpha": 8, "trainer.max_steps": 4, "trainer.learning_rate": 1e-2, "run_dir": str(run), "cache_dir": str(bases / "cache"),
    }  # fmt: skip
    for key, value in {**shared, **settings}.items():
        put(config, key, value)
    assert broken_rules(config) == []
    return config


def done(config: Config, run: RunDir) -> dict[str, Any]:
    """What the stages of a run leave; the metrics of train."""
    prepare.run(config, run, resolve(config))
    metrics = train.run(config, run, resolve(config))
    merge.run(config, run, resolve(config))
    return metrics


def changes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each pair of A and B as their product, what it adds to a weight; the others as they are."""
    found = {name: tensor for name, tensor in tensors.items() if ".lora_A" not in name and ".lora_B.weight" not in name}
    for name in tensors:
        if ".lora_A" in name:
            found[name] = tensors[name.replace(".lora_A", ".lora_B")] @ tensors[name]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_and_is_merged(kind: str, bases: Path, tmp_path: Path) -> None:
    one = KINDS[kind]
    config = configured(bases, one.base, tmp_path / "run", one.settings)
    run = RunDir(tmp_path / "run")
    metrics = done(config, run)

    report = json.loads((run.root / "merge_report.json").read_text())
    assert report["merge/wrong_weights"] == 0 and report["merge/kl_beyond_rounding"] < 1e-12
    assert report["merge/kl"] < 1e-9 and report["merge/max_logit_difference"] < 1e-4

    saved = load_file(run.adapter / "adapter_model.safetensors")
    assert one.holds({name: tensor.shape for name, tensor in saved.items()}), sorted(saved)
    another = configured(bases, one.base, tmp_path / "another", one.settings)
    prepare.run(another, RunDir(tmp_path / "another"), resolve(another))
    untrained: Any = train.build_trainer(another, RunDir(tmp_path / "another"), resolve(another)).model
    start, end = changes(get_peft_model_state_dict(untrained)), changes(saved)
    pissa = "pissa" in kind  # whose product is the change since then
    for name, tensor in end.items():
        if not name.endswith(one.untrained or "none"):
            before = torch.zeros_like(tensor) if pissa and ".lora_A" in name else start[name]
            assert (tensor - before).norm() > 1e-4, f"{name} has not moved"

    words, merged = AutoTokenizer.from_pretrained(run.merged), AutoModelForCausalLM.from_pretrained(run.merged)
    if "model.add_tokens" in one.settings:
        size = len(AutoTokenizer.from_pretrained(bases / one.base))
        assert words("<|think|><|end_think|>")["input_ids"] == [size, size + 1]
        assert merged.config.vocab_size == len(words) == size + 2
        assert merged.config.tie_word_embeddings == (one.base == "tied")
    first = json.loads(run.train_log.read_text().splitlines()[0])["loss"]
    assert math.isfinite(metrics["train/loss"]) and metrics["train/loss"] < first


GOES_ON: dict[str, dict[str, Any]] = {
    "pissa": {"lora.init_lora_weights": "pissa_niter_4"},
    "loraplus": {"lora.loraplus_lr_ratio": 16.0},
    "added tokens": TOKENS,
}


@pytest.mark.parametrize("kind", GOES_ON)
def test_a_run_that_goes_on_ends_where_it_would_have(kind: str, bases: Path, tmp_path: Path) -> None:
    """Killed after the third step, and in the first."""
    settings = {**GOES_ON[kind], "lora.lora_dropout": 0.1, "trainer.save_steps": 2}
    config = configured(bases, "tied", tmp_path, settings)
    whole, late, early = (RunDir(tmp_path / name) for name in ("whole", "late", "early"))
    prepare.run(config, whole, resolve(config))
    train.run(config, whole, resolve(config))
    assert (whole.root / "pissa_init").is_dir() == (kind == "pissa")
    for run, lost in ((late, "checkpoint-4"), (early, "checkpoint-*")):
        shutil.copytree(whole.root, run.root, ignore=shutil.ignore_patterns("adapter", lost))
        assert train.run(config, run, resolve(config))["train/steps"] == 4
    adapters = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (whole, late, early)]
    assert adapters[0] == adapters[1] == adapters[2]
    saved = json.loads((late.adapter / "adapter_config.json").read_text())
    assert saved["init_lora_weights"] is True and (saved["r"], saved["lora_alpha"]) == (
        (8, 16) if kind == "pissa" else (4, 8)
    )


def test_added_tokens_are_the_same_rows_at_every_load(bases: Path, tmp_path: Path) -> None:
    """The mean of the others, whatever was drawn before; what the model says of the other tokens hardly moves."""
    config = configured(bases, "plain", tmp_path, TOKENS)
    loaded: list[Any] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loaded.append(named_model("base", config, resolve(config), str(bases / "plain"), tmp_path, tmp_path))
    before: Any = AutoModelForCausalLM.from_pretrained(bases / "plain")
    size = len(before.get_input_embeddings().weight)
    for part in ("get_input_embeddings", "get_output_embeddings"):
        one, other, old = (getattr(model, part)().weight for model in (*loaded, before))
        assert torch.equal(one, other) and torch.equal(one[:size], old) and len(one) == size + 2
        assert torch.allclose(one[size:], old.mean(0), atol=1e-7)
    with torch.no_grad():
        ids = torch.arange(3, 60)[None]
        was, now = before(ids).logits.softmax(-1), loaded[0](ids).logits.softmax(-1)
    assert now[..., size:].sum(-1).max() < 2.5 / size  # of two tokens among `size`
    assert torch.allclose(now[..., :size] / now[..., :size].sum(-1, keepdim=True), was, atol=1e-6)


def test_tokens_that_are_there_change_nothing(bases: Path, tmp_path: Path) -> None:
    own = configured(bases, "plain", tmp_path, {})
    there = configured(bases, "plain", tmp_path, {"model.add_tokens": ["</s>", "e"]})
    words, same = (load_tokenizer(config.model, str(bases / "plain")) for config in (own, there))
    assert len(words) == len(same) and words("An otter</s>")["input_ids"] == same("An otter</s>")["input_ids"]
    assert added_ids(there.model, str(bases / "plain")) == []
    model = load_model(there.model, str(bases / "plain"), resolve(there))
    assert model.config.get_text_config().vocab_size == len(words)


def test_an_adapter_of_added_tokens_is_the_model_that_was_trained(bases: Path, tmp_path: Path) -> None:
    """Loaded by hydratune, and onto a base that knows nothing of the tokens."""
    config = configured(bases, "tied", tmp_path / "run", TOKENS)
    run, hardware, source = RunDir(tmp_path / "run"), resolve(config), str(bases / "tied")
    prepare.run(config, run, hardware)
    trainer: Any = train.build_trainer(config, run, hardware)
    trainer.train()
    trainer.save_model(str(run.adapter))
    keep_vocabulary(trainer.model, run.adapter, added_ids(config.model, source))
    loaded = named_model("adapter", config, hardware, source, run.adapter, run.merged)
    alone = with_adapter(AutoModelForCausalLM.from_pretrained(source), run.adapter).eval()
    ids = torch.tensor([[5, 9, 357, 3, 358, 12]])
    with torch.no_grad():
        trained, *others = (model(ids).logits for model in (trainer.model.eval(), loaded, alone))
    assert all(torch.allclose(trained, other, atol=1e-6) for other in others)


def test_without_an_adapter_the_whole_vocabulary_trains(bases: Path, tmp_path: Path) -> None:
    config = configured(
        bases, "tied", tmp_path / "run", {**TOKENS, "lora.kind": "none", "lora.r": 16, "lora.lora_alpha": 32}
    )
    run = RunDir(tmp_path / "run")
    prepare.run(config, run, resolve(config))
    train.run(config, run, resolve(config))
    words = AutoTokenizer.from_pretrained(run.merged)
    model: Any = AutoModelForCausalLM.from_pretrained(run.merged)
    rows = model.get_input_embeddings().weight
    assert len(rows) == len(words) == 359 and words("<|end_think|>")["input_ids"] == [358]
    assert (rows[357] - rows[358]).norm() > 1e-3, "they were the same at first"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such token": (
        {"lora.trainable_token_indices": [3, 357]},
        "lora.trainable_token_indices names token 357, and the vocabulary has the tokens 0 to 356.",
    ),
    "both": (
        {"lora.trainable_token_indices": [3], "lora.modules_to_save": ["embed_tokens"]},
        "lora.modules_to_save=['embed_tokens'] trains all of embed_tokens, and lora.trainable_token_indices some of its "
        "rows: leave one out.",
    ),
    "a quantized head": (
        {"quantization.kind": "nf4", "quantization.llm_int8_skip_modules": ["down_proj"]},
        "quantization.llm_int8_skip_modules=['down_proj'] leaves lm_head to be quantized, from whose weights the loss is "
        "computed: add lm_head there.",
    ),
    "an adapter on the head": (
        {"lora.target_modules": ["q_proj", "lm_head"]},
        "lora.target_modules=['q_proj', 'lm_head'] reaches lm_head, of which trl trains no adapter: leave it out, or set "
        "lora.modules_to_save=[lm_head].",
    ),
    "pissa in 16 bits": (
        {"lora.init_lora_weights": "pissa", "model.dtype": "bfloat16"},
        "lora.init_lora_weights=pissa takes the adapter out of the base's weights, which bfloat16 (model.dtype=bfloat16) "
        "would round: set model.dtype=float32.",
    ),
    "pissa of a high rank": (
        {"lora.init_lora_weights": "pissa", "lora.r": 64},
        "model.layers.0.self_attn.q_proj has 32 principal components, and its adapter the rank 64: set a smaller lora.r.",
    ),
}  # fmt: skip


def test_a_head_with_a_bias(bases: Path, tmp_path: Path) -> None:
    """peft's layer for some rows of it computes without the bias; the advice is sound."""
    config = configured(bases, "head with a bias", tmp_path, TOKENS)
    with pytest.raises(ConfigError) as refused:
        check(config, ["train"])
    assert refused.value.sentences == [
        "The model's lm_head has a bias, which peft leaves out where it trains rows of it: set "
        "lora.modules_to_save=[embed_tokens,lm_head]."
    ]
    config.lora.modules_to_save = ["embed_tokens", "lm_head"]
    run = RunDir(tmp_path)
    check(config, ["train"])
    done(config, run)
    report = json.loads((run.root / "merge_report.json").read_text())
    assert report["merge/wrong_weights"] == 0 and report["merge/kl"] < 1e-9


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_before_weights_load(kind: str, bases: Path, tmp_path: Path) -> None:
    settings, said = REFUSED[kind]
    config = configured(bases, "plain", tmp_path, settings)
    with pytest.raises(ConfigError) as refused:
        check(config, ["train"])
    assert refused.value.sentences == [said]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_here_passes_the_checks(kind: str, bases: Path, tmp_path: Path) -> None:
    check(configured(bases, KINDS[kind].base, tmp_path, KINDS[kind].settings), ["train"])
