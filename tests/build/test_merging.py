"""The merge in a stream writes what peft's own merge_and_unload gives, for each kind of adapter and of model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config, Starcoder2Config

from hydratune.build.adapter import with_adapter
from hydratune.build.dequantize import dequantizer
from hydratune.build.hardware import resolve
from hydratune.build.merging import Adapter, merge
from hydratune.build.model import load_model
from hydratune.build.peft_merge import merge_with_peft, put_dequantized
from hydratune.build.safetensors_folder import SafetensorsFolder
from hydratune.config.load import to_config
from hydratune.config.schema import RunError

SIZE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": lambda tied: LlamaConfig(**SIZE, num_key_value_heads=2, tie_word_embeddings=tied),
    "qwen3": lambda tied: Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied),
    "gemma3": lambda tied: Gemma3TextConfig(**SIZE, num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied),
    "starcoder2": lambda tied: Starcoder2Config(**SIZE, num_key_value_heads=2, tie_word_embeddings=tied),
    "gpt2": lambda tied: GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=128, tie_word_embeddings=tied
    ),
}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"{first}": 2}, "alpha_pattern": {"0.*{last}": 5}},
    "bias": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "whole head": {"modules_to_save": ["lm_head"]},
    "norm": {"modules_to_save": ["{norm}"]},
}
NAMES = {
    "gpt2": {"first": "c_attn", "last": "c_proj", "norm": "ln_f", "embedding": "wte"},
    "other": {"first": "q_proj", "last": "down_proj", "norm": "norm", "embedding": "embed_tokens"},
}


def named(value: Any, model: str) -> Any:
    """`value` with the model's own names in it."""
    if isinstance(value, dict):
        return {named(key, model): named(inner, model) for key, inner in value.items()}
    if isinstance(value, list):
        return [named(inner, model) for inner in value]
    return value.format(**NAMES.get(model, NAMES["other"])) if isinstance(value, str) else value


def base_model(folder: Path, model: str, tied: bool, dtype: torch.dtype, shards: bool) -> Path:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(MODELS[model](tied)).to(dtype)
    made.save_pretrained(folder, max_shard_size="8KB" if shards else "5GB")
    assert (folder / "model.safetensors.index.json").is_file() == shards
    return folder


def adapter(base: Path, folder: Path, rows: int | None = None, **options: Any) -> Path:
    """An adapter with random weights, none of them zero, of a model with `rows` tokens."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows)
    options.setdefault("target_modules", "all-linear")
    return save_adapter(model, folder, **options)


def save_adapter(model: Any, folder: Path, **options: Any) -> Path:
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=7, task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(folder)
    return folder


def by_peft(base: Path, adapted: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Float32 arithmetic, then one rounding."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(plain, str(adapted)).merge_and_unload()
    return {name: tensor.to(dtype) for name, tensor in merged.state_dict().items()}


def in_a_stream(base: Path, adapted: Path, out: Path, dtype: torch.dtype | None = None) -> Path:
    out.mkdir()
    merge(SafetensorsFolder(base), Adapter(adapted), out, dtype, {})
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def units_apart(a: torch.Tensor, b: torch.Tensor) -> int:
    """The greatest distance in units in the last place, of tensors of one 16- or 32-bit type."""
    whole = {2: torch.int16, 4: torch.int32}[a.element_size()]
    steps = [torch.where(t < 0, torch.iinfo(whole).min - t, t) for t in (a.view(whole).long(), b.view(whole).long())]
    return int((steps[0] - steps[1]).abs().max())


def apart(folder: Path, expected: dict[str, torch.Tensor]) -> int:
    found = weights(folder)
    missing = expected.keys() - found.keys()
    assert found.keys() <= expected.keys() and missing <= {"lm_head.weight"}, (found.keys(), missing)
    return max(units_apart(tensor, expected[name].contiguous()) for name, tensor in found.items())


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["llama", "qwen3", "gemma3", "gpt2"])
def test_equal_to_peft(model: str, kind: str, tied: bool, shards: bool, tmp_path: Path) -> None:
    dtype = torch.bfloat16
    base = base_model(tmp_path / "base", model, tied, dtype, shards)
    adapted = adapter(base, tmp_path / "adapter", **named(KINDS[kind], model))
    if kind == "lora_bias" and model != "gpt2":  # there is no bias to add it to, and peft can't merge it either
        with pytest.raises(RunError, match=r"no place for it: set lora\.extra\.lora_bias=false"):
            in_a_stream(base, adapted, tmp_path / "out")
        return
    out = in_a_stream(base, adapted, tmp_path / "out")
    # 1 for DoRA, whose norm peft takes of a transposed view
    assert apart(out, by_peft(base, adapted, dtype)) <= (1 if kind == "dora" else 0)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert loaded.dtype == dtype
    untied = loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight
    assert untied == (not tied or kind == "whole head")
    assert json.loads((out / "config.json").read_text()).get("tie_word_embeddings", tied) == (not untied)
    assert (out / "model.safetensors.index.json").is_file() == shards


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_the_type_that_is_asked_for(dtype: torch.dtype, stored: torch.dtype, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", True, stored, shards=True)
    adapted = adapter(base, tmp_path / "adapter")
    out = in_a_stream(base, adapted, tmp_path / "out", dtype)
    assert {tensor.dtype for tensor in weights(out).values()} == {dtype}
    assert apart(out, by_peft(base, adapted, dtype)) == 0
    assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights(out).values())
    for name, file in index["weight_map"].items():
        assert name in load_file(out / file)


def test_what_does_not_change_is_the_same_bytes(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", False, torch.bfloat16, shards=False)
    adapted = adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    found, before = weights(in_a_stream(base, adapted, tmp_path / "out")), weights(base)
    changed = {
        name for name in before if not torch.equal(found[name].view(torch.int16), before[name].view(torch.int16))
    }
    assert changed == {f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)}


def same_function(base: Path, adapted: Path | None, out: Path, plain: Any = None) -> float:
    """The greatest difference between the logits of the adapter model and of the merged folder, in float32."""
    ids = torch.arange(2, 90)[None]
    trained = plain or AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapted:
        trained = with_adapter(trained, adapted)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()(ids).logits
        return (trained.eval()(ids).logits - merged).abs().max().item()


EMBEDDINGS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["{embedding}", "{first}"]},
    "whole": {"modules_to_save": ["{embedding}"]},
    "rows": {"trainable_token_indices": [3, 50, 95]},
    "rows by name": {"trainable_token_indices": {"{embedding}": [3, 50, 95]}},
    "both whole": {"modules_to_save": ["{embedding}", "lm_head"]},
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_embeddings_become_what_was_trained(model: str, kind: str, tied: bool, tmp_path: Path) -> None:
    """Compared as functions: with tied embeddings, peft's own merge changes the head along, which was not trained."""
    base = base_model(tmp_path / "base", model, tied, torch.float32, shards=False)
    adapted = adapter(base, tmp_path / "adapter", **named(EMBEDDINGS[kind], model))
    out = in_a_stream(base, adapted, tmp_path / "out")
    assert same_function(base, adapted, out) < 1e-5
    loaded = AutoModelForCausalLM.from_pretrained(out)
    still = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert still == (tied and kind.startswith("rows"))


def store_twice(base: Path) -> None:
    """The head beside the embedding that it is tied to, as some checkpoints have it."""
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


def leave_tying_out(base: Path) -> None:
    """Of config.json, as transformers 4 did for families that are tied by default."""
    config = json.loads((base / "config.json").read_text())
    del config["tie_word_embeddings"]
    (base / "config.json").write_text(json.dumps(config))


TYING: dict[str, tuple[str, bool, Callable[[Path], None]]] = {
    "untied": ("llama", False, lambda base: None),
    "tied": ("llama", True, lambda base: None),
    "tied, stored twice": ("llama", True, store_twice),
    "tied, not said": ("starcoder2", True, leave_tying_out),
}
VOCABULARY = EMBEDDINGS | {
    "nothing": {},
    "whole head": {"modules_to_save": ["lm_head"]},
    "head": {"target_modules": ["lm_head", "{first}"]},
    "dora": {"use_dora": True, "target_modules": ["{embedding}", "{first}"]},
    "tied whole": {"modules_to_save": ["{embedding}"], "ensure_weight_tying": True},
    "tied lora": {"target_modules": ["{embedding}"], "ensure_weight_tying": True},
}
LACKING = ("lora", "head", "dora", "tied lora")  # kinds of which peft saves one of two untied matrices only


WAYS = [(tying, "stream") for tying in TYING] + [("untied", "peft"), ("tied", "peft")]


@pytest.mark.parametrize("rows", [96, 99], ids=["same vocabulary", "resized"])
@pytest.mark.parametrize("kind", VOCABULARY)
@pytest.mark.parametrize(("tying", "method"), WAYS)
def test_embeddings_and_vocabularies(tying: str, kind: str, rows: int, method: str, tmp_path: Path) -> None:
    model, tied, change = TYING[tying]
    base = base_model(tmp_path / "base", model, tied, torch.float32, shards=False)
    change(base)
    options = named(VOCABULARY[kind], model)
    adapted = adapter(base, tmp_path / "adapter", rows, **options)
    out = tmp_path / "out"
    factors = kind in LACKING and (rows == 99 or (tied and kind == "tied lora"))
    if (method == "peft" and factors) or (rows == 99 and not tied and kind in LACKING):
        said = r"embedding is not what was trained: set merge\.method=stream\.$"
        if method == "stream":
            said = r"another vocabulary .*: set lora\.modules_to_save=\[embed_tokens,lm_head\]\.$"
        with pytest.raises(RunError, match=said):
            in_a_stream(base, adapted, out) if method == "stream" else with_peft(base, adapted, out)
        assert not list(out.glob("*.safetensors"))
        return
    in_a_stream(base, adapted, out) if method == "stream" else with_peft(base, adapted, out)
    assert same_function(base, adapted, out) < 1e-5
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain.resize_token_embeddings(rows)
    assert same_function(base, None, out, plain) > 1e-2  # and not the base
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.config.vocab_size == rows
    matrices = [loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight]
    assert [len(one) for one in matrices] == [rows, rows]
    assert (matrices[0] is matrices[1]) == loaded.config.tie_word_embeddings
    if method == "stream":
        together = kind.startswith("rows") or kind in ("nothing", "tied whole")
        assert loaded.config.tie_word_embeddings == (tied and together)


def with_peft(base: Path, adapted: Path, out: Path) -> None:
    out.mkdir()
    config = to_config({"model": {"name_or_path": str(base), "dtype": "float32"}})
    merge_with_peft(config, resolve(config), str(base), adapted, False, out)


@pytest.mark.parametrize("method", ["stream", "peft"])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_onto_the_values_that_the_quantized_weights_stand_for(
    model: str, kind: str, method: str, tmp_path: Path
) -> None:
    """GPT-2's layers keep (in, out), and bitsandbytes quantizes them turned."""
    base = base_model(tmp_path / "base", model, True, torch.float32, shards=False)
    config = to_config(
        {
            "model": {"name_or_path": str(base), "dtype": "float32"},
            "lora": {"kind": "lora"},
            "quantization": {"kind": kind},
        }
    )
    hardware = resolve(config)
    quantized = load_model(config.model, str(base), hardware, config.quantization)
    modules = [n for n, one in quantized.named_modules() if isinstance(one, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)]
    assert len(modules) == {"llama": 14, "gpt2": 8}[model]
    save_adapter(quantized, tmp_path / "adapter", target_modules="all-linear")
    out = tmp_path / "out"
    out.mkdir()
    if method == "peft":
        merge_with_peft(config, hardware, str(base), tmp_path / "adapter", True, out)
    else:
        values = dequantizer(config.quantization, "float32")
        merge(SafetensorsFolder(base), Adapter(tmp_path / "adapter"), out, None, dict.fromkeys(modules, values))
    onto = load_model(config.model, str(base), hardware, config.quantization)
    # int8's activations are rounded too
    assert same_function(base, tmp_path / "adapter", out, onto) < (2e-2 if kind == "int8" else 1e-4)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    put_dequantized(plain, load_model(config.model, str(base), hardware, config.quantization))
    assert same_function(base, tmp_path / "adapter", out, plain) < 1e-4
    on_the_original = same_function(base, tmp_path / "adapter", out)
    assert on_the_original > (1e-3 if kind == "int8" else 1e-2)


def test_a_checkpoint_without_the_base_models_prefix(tmp_path: Path) -> None:
    """As GPT-2 lies on the hub: h.0.attn… for the model's transformer.h.0.attn…"""
    base = base_model(tmp_path / "base", "gpt2", True, torch.float32, shards=False)
    adapted = adapter(base, tmp_path / "adapter")
    expected = by_peft(base, adapted, torch.float32)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights(base).items()}
    save_file(bare, base / "model.safetensors", {"format": "pt"})
    out = in_a_stream(base, adapted, tmp_path / "out")
    assert all(torch.equal(tensor, expected[f"transformer.{name}"]) for name, tensor in weights(out).items())


def test_pissa_converted_to_lora(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", False, torch.float32, shards=False)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=4, init_lora_weights="pissa", target_modules="all-linear", task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(model, config)
    tuned.peft_config["default"].init_lora_weights = True
    tuned.save_pretrained(tmp_path / "initial")
    tuned.peft_config["default"].init_lora_weights = "pissa"
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    tuned.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    out = in_a_stream(base, tmp_path / "adapter", tmp_path / "out")
    with torch.no_grad():
        ids = torch.arange(2, 90)[None]
        merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids).logits
        assert (tuned.eval()(ids).logits - merged).abs().max() < 1e-4
