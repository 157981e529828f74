"""What can't be merged as it was trained is refused, each case in a sentence of its own, and before training if possible."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3MoeConfig

from hydratune.build.hardware import resolve
from hydratune.build.merging import Adapter, merge
from hydratune.build.peft_merge import merge_with_peft
from hydratune.build.safetensors_folder import SafetensorsFolder
from hydratune.config.load import to_config
from hydratune.config.schema import ConfigError, RunError
from hydratune.preflight_adapter import check_adapter
from tests.build.test_merging import SIZE, adapter, base_model, same_function

MOE = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
METHODS = pytest.mark.parametrize("method", ["stream", "peft"])


def saved(folder: Path, settings: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    return folder


def refusal(method: str, base: Path, adapted: Path, out: Path) -> str:
    out.mkdir()
    config = to_config({"model": {"name_or_path": str(base), "dtype": "float32"}})
    with pytest.raises(RunError) as refused:
        if method == "stream":
            merge(SafetensorsFolder(base), Adapter(adapted), out, None, {})
        else:
            merge_with_peft(config, resolve(config), str(base), adapted, False, out)
    assert not list(out.iterdir())
    return str(refused.value)


def before_training(base: Path | str, settings: Any = None, **groups: Any) -> str:
    """What preflight says; empty where it lets the run start."""
    lora = {"kind": "lora", "target_modules": "all-linear"} | groups.pop("lora", {})
    config = to_config({"model": {"name_or_path": str(base)}, "lora": lora} | groups)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings or AutoConfig.from_pretrained(base))
    try:
        check_adapter(config, model)
    except ConfigError as error:
        return " ".join(error.sentences)
    return ""


def write(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


@pytest.mark.parametrize("what", ["experts", "unknown"])
def test_what_belongs_to_no_tensor_of_the_base_is_named(what: str, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", False, torch.float32, shards=False)
    adapted = adapter(base, tmp_path / "adapter")
    tensors = load_file(adapted / "adapter_model.safetensors")
    module = "model.layers.0.mlp.experts" if what == "experts" else "x"
    stray = ["lora_A.weight", "lora_B.weight"] if what == "experts" else ["y"]
    tensors |= {f"base_model.model.{module}.{name}": torch.zeros(2, 2) for name in stray}
    save_file(tensors, adapted / "adapter_model.safetensors")
    said = f"1 adapted module, such as {module}, can't be merged tensor by tensor: set merge.method=peft."
    assert refusal("stream", base, adapted, tmp_path / "out") == said


@METHODS
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_an_adapter_that_changed_its_base(init: str, method: str, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", False, torch.float32, shards=False)
    adapted = adapter(base, tmp_path / "adapter")
    write(adapted / "adapter_config.json", init_lora_weights=init)
    said = refusal(method, base, adapted, tmp_path / "out")
    assert f"initialised with init_lora_weights={init}, which changes the base's weights too" in said
    assert said.endswith("train with lora.init_lora_weights=true.")


@METHODS
@pytest.mark.parametrize(
    "extra",
    [{"alora_invocation_tokens": [3, 4]}, {"layer_replication": [[0, 2], [1, 2]]}],
    ids=lambda extra: next(iter(extra)),
)
def test_an_adapter_that_does_what_weights_can_not(extra: dict[str, Any], method: str, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", False, torch.float32, shards=False)
    adapted = adapter(base, tmp_path / "adapter")
    write(adapted / "adapter_config.json", **extra)
    (option,) = extra
    said = refusal(method, base, adapted, tmp_path / "out")
    assert said.startswith(f"The adapter's {option} ")
    assert said.endswith(f"leave lora.extra.{option} out, or merge out of stages.")
    assert before_training(base, lora={"extra": extra}, merge={"method": method}) == said
    assert before_training(base, lora={"extra": extra}, merge={"method": method}, stages=["prepare", "train"]) == ""


@METHODS
def test_biases_for_layers_without(method: str, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", False, torch.float32, shards=False)
    said = refusal(method, base, adapter(base, tmp_path / "adapter", lora_bias=True), tmp_path / "out")
    assert "a bias for 14 layers without one, such as model.layers.0.mlp.down_proj" in said
    assert said.endswith("set lora.extra.lora_bias=false, or leave merge out of stages.")
    assert before_training(base, lora={"extra": {"lora_bias": True}}, merge={"method": method}) == said
    gpt2 = base_model(tmp_path / "gpt2", "gpt2", False, torch.float32, shards=False)
    assert before_training(gpt2, lora={"extra": {"lora_bias": True}}) == ""  # all of its layers have one


def test_experts_need_peft_which_is_said_before_training(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", Qwen3MoeConfig(**SIZE, **MOE, num_key_value_heads=2))
    said = before_training(base)
    assert said.endswith(" can't be merged tensor by tensor: set merge.method=peft.")
    assert "such as model.layers.0.mlp.experts" in said
    assert before_training(base, merge={"method": "peft"}) == ""
    assert before_training(base, lora={"target_modules": ["q_proj"]}) == ""
    assert refusal("stream", base, adapter(base, tmp_path / "adapter"), tmp_path / "out") == said
    config = to_config({"model": {"name_or_path": str(base), "dtype": "float32"}})
    merge_with_peft(config, resolve(config), str(base), tmp_path / "adapter", False, tmp_path / "by peft")
    assert same_function(base, tmp_path / "adapter", tmp_path / "by peft") < 1e-5


def test_a_base_on_the_hub_is_known_by_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That in the hub's cache names the stored tensors; where there is none, the model's own names have to do."""
    settings = LlamaConfig(**SIZE, num_key_value_heads=2)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert before_training("some/model", settings) == ""
    snapshot = tmp_path / "models--some--model/snapshots/0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--some--model/refs").mkdir()
    (tmp_path / "models--some--model/refs/main").write_text("0123")
    names = [name for name, _ in AutoModelForCausalLM.from_config(settings).named_parameters()]
    index = snapshot / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    assert before_training("some/model", settings) == ""
    fused = [name.replace("q_proj", "qkv") for name in names if "k_proj" not in name and "v_proj" not in name]
    index.write_text(json.dumps({"weight_map": dict.fromkeys(fused, "a.safetensors")}))
    said = before_training("some/model", settings)
    assert said.startswith("6 adapted modules, such as model.layers.0.self_attn.k_proj, can't be merged")


@METHODS
def test_a_base_that_is_stored_quantized(method: str, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", False, torch.float32, shards=False)
    adapted = adapter(base, tmp_path / "adapter")
    write(base / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    said = refusal(method, base, adapted, tmp_path / "out")
    assert said.startswith(f"The weights of {base} are stored quantized") and "set model.name_or_path to " in said
    assert before_training(base, merge={"method": method}) == said


def test_tied_embeddings_that_peft_trains_as_one_and_merges_as_two(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", True, torch.float32, shards=False)
    lora = {"target_modules": ["embed_tokens"], "extra": {"ensure_weight_tying": True}}
    peft, stream = (before_training(base, lora=lora, merge={"method": method}) for method in ("peft", "stream"))
    assert peft.startswith(
        "peft's own merge of an adapter of this embedding is not what was trained: set merge.method="
    )
    # peft's tie brings an adapter of the head along, which only other trainers than trl's can have made
    assert stream == peft.partition("set merge.method=stream. ")[2]
    assert stream.startswith("lora.target_modules=['embed_tokens'] reaches lm_head, of which trl trains no adapter")


def test_an_adapter_of_another_model_is_never_fitted(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", LlamaConfig(**SIZE | {"intermediate_size": 64}, num_key_value_heads=2))
    other = saved(tmp_path / "other", LlamaConfig(**SIZE, num_key_value_heads=2))
    said = refusal("stream", base, adapter(other, tmp_path / "adapter"), tmp_path / "out")
    assert (
        "down_proj.lora_A.weight is for a weight of 32 by 48, and model.layers.0.mlp.down_proj.weight has 32 by 64"
        in said
    )
    assert said.endswith("set model.name_or_path to the model that the adapter was trained on.")


@pytest.mark.parametrize("flag", [False, True])
def test_how_a_weight_lies_is_said_by_its_class_and_not_by_the_adapter(flag: bool, tmp_path: Path) -> None:
    """fan_in_fan_out is that of the last module that peft adapted, in GPT-2 with its head a Linear; sizes tell nothing."""
    sizes = {"vocab_size": 96, "n_embd": 32, "n_inner": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    base = saved(tmp_path / "base", GPT2Config(**sizes))
    adapted = adapter(base, tmp_path / "adapter", target_modules=["c_proj", "c_fc", "lm_head"])
    write(adapted / "adapter_config.json", fan_in_fan_out=flag)
    (tmp_path / "out").mkdir()
    merge(SafetensorsFolder(base), Adapter(adapted), tmp_path / "out", None, {})
    assert same_function(base, adapted, tmp_path / "out") < 1e-5
