"""experiment=tinyllama_ultrachat_qlora, value by value as literals, and whole on a tiny model."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from hydra import compose, initialize_config_dir
from peft import prepare_model_for_kbit_training
from tokenizers.processors import TemplateProcessing

from hydratune.build.hardware import Hardware, resolve
from hydratune.build.lora import build_lora
from hydratune.build.model import load_tokenizer
from hydratune.build.quantization import build_quantization
from hydratune.build.rendering import Renderer, Tokens
from hydratune.build.store import Prepared
from hydratune.build.tokens import build_tokens
from hydratune.build.trainer import build_trainer_args
from hydratune.config.load import CONF_DIR, to_config
from hydratune.config.rules import broken_rules
from hydratune.config.schema import ModelConf
from hydratune.formats import Chat
from hydratune.run.layout import RunDir
from hydratune.stages import prepare as prepare_stage
from hydratune.stages import train
from hydratune.stages.generate import prompt_tokens

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
    assert (recipe.merge.base, recipe.merge.dtype) == ("original", "float16")


def test_the_prompt_it_generates_from(recipe, tiny):
    tokenizer = load_tokenizer(ModelConf(chat_template=recipe.model.chat_template), str(tiny))
    (prompt,) = recipe.generate.prompts
    tokens = prompt_tokens(tokenizer, prompt, recipe.generate.apply_chat_template)["input_ids"][0].tolist()
    rendered = "<|user|>\nTell me something about Large Language Models.</s>\n<|assistant|>\n"
    assert tokens == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_one_beginning_of_sequence(recipe, tiny):
    """TinyLlama's tokenizer puts a BOS before each text, and its template renders none."""
    tokenizer = load_tokenizer(ModelConf(chat_template=recipe.model.chat_template), str(tiny))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    (row,) = Renderer(tokenizer).tokens([Chat(turns, 1)], recipe.data.loss)
    assert isinstance(row, Tokens)
    assert tokenizer.decode(row.ids) == "<s><|user|>\nHello?</s>\n<|assistant|>\nHello.</s>\n"
    assert row.labels == row.ids


def test_what_float16_trains_is_float32(recipe, tiny, rows, tmp_path, monkeypatch):
    """trl casts the adapter of a quantized model to bfloat16; float16's loss scaling needs float32."""
    recipe.model.name_or_path, recipe.model.device_map = str(tiny), None
    recipe.data.path, recipe.data.split, recipe.cache_dir = str(rows), "train", str(tmp_path / "cache")
    on_cpu = replace(T4, device="cpu", dtype="float32", compute_dtype="float32", optim="adamw_torch")
    prepared = []

    def prepare(model, **options):
        prepared.append(options)
        return prepare_model_for_kbit_training(model, **options)

    monkeypatch.setattr(train, "prepare_model_for_kbit_training", prepare)
    on_cpu, run = replace(on_cpu, precision="float32"), RunDir(tmp_path / "run")
    prepare_stage.run(recipe, run, on_cpu)
    trainer = train.build_trainer(recipe, run, on_cpu)
    assert len(prepared) == 1
    learnt = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(learnt) == 2 * 7 * 2 and all("lora_" in name for name in learnt)
    assert {p.dtype for p in learnt.values()} == {torch.float32}
    assert not any(p.requires_grad for name, p in trainer.model.named_parameters() if "lora_" not in name)


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


def test_the_rows_are_those_of_datasets_own_shuffle(recipe, rows, tiny, tmp_path):
    whole = Dataset.from_json(str(rows))
    recipe.data.path, recipe.data.split, recipe.data.max_rows = str(rows), "train", 10
    tokenizer = load_tokenizer(ModelConf(), str(tiny))
    ours = Prepared(build_tokens(recipe.data, tokenizer, 512, tmp_path)).rows["input_ids"]
    theirs, first = whole.shuffle(seed=42).select(range(10))["messages"], whole.select(range(10))["messages"]
    assert list(ours) == [tokenizer.apply_chat_template(turns)["input_ids"] for turns in theirs]
    assert list(theirs) != list(first)


def test_auto_on_a_gpu_is_what_the_recipe_says(recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve(recipe) == T4


USE_MERGED = """
import sys
from transformers import pipeline
text = pipeline("text-generation", sys.argv[1])("Hello", max_new_tokens=2)[0]["generated_text"]
assert text.startswith("Hello"), text
assert not [name for name in sys.modules if name.startswith("hydratune")]
"""


@pytest.mark.slow
def test_whole_run(tiny, rows, hydratune, environment, tmp_path):
    hub_like = tmp_path / "ultrachat"  # the split under its name on the hub, and another that is not to be read
    hub_like.mkdir()
    rows.rename(hub_like / "test_sft.jsonl")
    (hub_like / "train_sft.jsonl").write_text("{}")
    done = hydratune(
        "experiment=tinyllama_ultrachat_qlora", f"model.name_or_path={tiny}", "model.dtype=float32",
        "model.device_map=null", f"data.path={hub_like}", "quantization.bnb_4bit_compute_dtype=float32",
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
