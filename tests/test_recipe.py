"""experiment=tinyllama_ultrachat_qlora, value by value as literals, and whole on a tiny model."""

import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir

from hydratune.build.hardware import Hardware
from hydratune.build.lora import build_lora
from hydratune.build.model import load_tokenizer
from hydratune.build.quantization import build_quantization
from hydratune.build.trainer import build_trainer_args
from hydratune.config.load import CONF_DIR, to_config
from hydratune.config.rules import broken_rules
from hydratune.config.schema import ModelConf

T4 = Hardware(
    device="cuda", dtype="float16", compute_dtype="float16", precision="float16", optim="paged_adamw_32bit",
    attn_implementation="sdpa",
)  # fmt: skip


@pytest.fixture
def recipe():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return to_config(compose("config", ["experiment=tinyllama_ultrachat_qlora"]))


def test_quantization(recipe):
    built = build_quantization(recipe.quantization, recipe.quantization.bnb_4bit_compute_dtype)
    assert built is not None
    assert built.load_in_4bit is True and built.load_in_8bit is False
    assert built.bnb_4bit_quant_type == "nf4"
    assert built.bnb_4bit_use_double_quant is True
    assert built.bnb_4bit_compute_dtype == torch.float16


def test_lora(recipe):
    built = build_lora(recipe.lora)
    assert built is not None
    assert (built.r, built.lora_alpha, built.lora_dropout) == (64, 32, 0.1)
    assert (built.bias, built.task_type, built.use_rslora) == ("none", "CAUSAL_LM", False)
    seven = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(built.target_modules) == seven


def test_trainer(recipe, tmp_path):
    built = build_trainer_args(recipe, T4, tmp_path)
    assert (built.per_device_train_batch_size, built.gradient_accumulation_steps) == (2, 4)
    assert built.optim == "paged_adamw_32bit" == recipe.trainer.optim
    assert built.learning_rate == 2e-4
    assert built.lr_scheduler_type == "cosine"
    assert (built.num_train_epochs, built.max_steps) == (1, -1)
    assert built.logging_steps == 10
    assert built.fp16 is True and built.bf16 is False and recipe.trainer.precision == "float16"
    assert built.gradient_checkpointing is True
    assert built.max_length == 512


def test_the_rest(recipe):
    assert broken_rules(recipe) == []
    assert recipe.model.name_or_path == "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"
    assert (recipe.model.dtype, recipe.model.device_map) == ("float16", "auto")
    assert recipe.model.chat_template == "tinyllama_chat"
    data = recipe.data
    assert (data.path, data.split) == ("HuggingFaceH4/ultrachat_200k", "test_sft")
    assert (data.shuffle_seed, data.max_rows, data.loss) == (42, 3000, "all")
    assert recipe.benchmark.tasks == ["arc_easy", "hellaswag", "winogrande"]
    assert recipe.benchmark.limit == 200


def test_chat_template(tiny):
    tokenizer = load_tokenizer(ModelConf(chat_template="tinyllama_chat"), str(tiny))
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello."},
    ]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered == "<|system|>\nBe brief.</s>\n<|user|>\nHello?</s>\n<|assistant|>\nHello.</s>\n"
    prompt = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|system|>\nBe brief.</s>\n<|user|>\nHello?</s>\n<|assistant|>\n"


USE_MERGED = """
import sys
from transformers import pipeline
text = pipeline("text-generation", sys.argv[1])("Hello", max_new_tokens=2)[0]["generated_text"]
assert text.startswith("Hello"), text
assert not [name for name in sys.modules if name.startswith("hydratune")]
"""


@pytest.mark.slow
def test_whole_run(tiny, rows, hydratune, environment, tmp_path):
    done = hydratune(
        "experiment=tinyllama_ultrachat_qlora", f"model.name_or_path={tiny}", "model.dtype=float32",
        "model.device_map=null", f"data.path={rows}", "quantization.bnb_4bit_compute_dtype=float32",
        "trainer.optim=adamw_torch", "trainer.precision=float32", "trainer.max_steps=2", "benchmark=none",
        "run_dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "run"
    assert (run / "adapter/adapter_model.safetensors").is_file()
    assert (run / "merged/config.json").is_file()
    assert len((run / "samples.jsonl").read_text().splitlines()) == 1
    plain = subprocess.run(
        [sys.executable, "-c", USE_MERGED, str(run / "merged")],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
