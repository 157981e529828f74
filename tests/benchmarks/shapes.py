"""A checkpoint of TinyLlama 1.1B's shape with random weights, and a run directory with an adapter for it."""

import json
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoConfig

from hydratune.build.blueprint import as_saved, blueprint_of, float32_of, skeleton
from hydratune.config.load import saved_form
from hydratune.config.schema import Config, DataConf, LoraConf, MergeConf, ModelConf, QuantizationConf

WIDTH, INNER, KEYS, VOCABULARY = 2048, 5632, 256, 32000
LINEAR = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (KEYS, WIDTH), "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip
LAYERS_A_SHARD = 5


def checkpoint(folder: Path, layers: int = 22) -> Path:
    """bfloat16, in shards of half a gigabyte."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape).mul_(0.02).bfloat16()

    groups = [range(first, min(first + LAYERS_A_SHARD, layers)) for first in range(0, layers, LAYERS_A_SHARD)]
    weight_map: dict[str, str] = {}
    for number, group in enumerate([*groups, range(0)], 1):
        tensors = {
            f"model.layers.{layer}.{name}.weight": random(*shape) for layer in group for name, shape in LINEAR.items()
        }
        for layer in group:
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(WIDTH).bfloat16()
        if not group:
            tensors = {
                "model.embed_tokens.weight": random(VOCABULARY, WIDTH), "lm_head.weight": random(VOCABULARY, WIDTH),
                "model.norm.weight": torch.ones(WIDTH).bfloat16(),
            }  # fmt: skip
        file = f"model-{number:05}-of-{len(groups) + 1:05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def trained_run(folder: Path, model: Path, kind: str, layers: int = 22, r: int = 64) -> Path:
    """A run directory as training leaves it, with a random adapter on all linear layers."""
    (folder / "adapter").mkdir(parents=True)
    config = Config(
        model=ModelConf(name_or_path=str(model)), quantization=QuantizationConf(kind=kind), data=DataConf(path="demo"),
        lora=LoraConf(kind="lora", r=r, lora_alpha=16), merge=MergeConf(verify=False), run_dir=str(folder),
    )  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(saved_form(config)))
    names = [f"model.layers.{layer}.{name}" for layer in range(layers) for name in LINEAR]
    tensors = {}
    for name in names:
        out, inner = LINEAR[name.split(".", 3)[3]]
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(r, inner) * 0.02
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, r) * 0.02
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    adapter = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in LINEAR}), "base_model_name_or_path": str(model),
        "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "quantized.json").write_text(json.dumps({"modules": names}))
    # as the stage train leaves it, of the model that it has loaded
    plain = skeleton(AutoConfig.from_pretrained(model), False)
    facts = {"blueprint": as_saved(blueprint_of(plain)), "float32": float32_of(plain, torch.bfloat16), "stop": 2}
    (folder / "model.json").write_text(json.dumps(facts))
    (folder / "prepared.json").write_text('{"tokens": "none"}')
    (folder / "receipts").mkdir()
    for stage in ("prepare", "train"):
        receipt = {"stage": stage, "status": "done", "key": None, "metrics": {}, "inputs": {}, "outputs": {}}
        receipt["hardware"] = {"dtype": "bfloat16"}
        (folder / "receipts" / f"{stage}.json").write_text(json.dumps(receipt))
    return folder
