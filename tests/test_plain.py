"""What a run leaves is used without hydratune: peft and transformers alone, from another folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hydratune.build.chat_template import TEMPLATES

pytestmark = pytest.mark.slow

USE = """
import sys
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, pipeline

adapter, merged = sys.argv[1:]
chat = [{"role": "user", "content": "What is fern?"}]
options = {"max_new_tokens": 4, "do_sample": False}

model = AutoPeftModelForCausalLM.from_pretrained(adapter).merge_and_unload()
tokenizer = AutoTokenizer.from_pretrained(adapter)
batch = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
length = batch["input_ids"].shape[1]
assert length < model.generate(**batch, **options).shape[1] <= length + 4

generate = pipeline("text-generation", merged)
*asked, answer = generate(chat, **options)[0]["generated_text"]
assert asked == chat and answer["role"] == "assistant", answer
assert generate("fern", **options)[0]["generated_text"].startswith("fern")
assert not [name for name in sys.modules if name.startswith("hydratune")]
"""


def use(adapter: Path, merged: Path, environment: dict[str, str], folder: Path) -> None:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", USE, str(adapter), str(merged)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_qlora_run(tiny: Path, rows: Path, hydratune, environment, tmp_path: Path) -> None:
    # stored in bfloat16 and named by a relative path, as a user's own folder may be
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "base")
    done = hydratune(
        "model=local", "model.name_or_path=base", "model.chat_template=tinyllama_chat", "data=jsonl",
        f"data.path={rows}", "quantization=nf4", "lora=all_linear", "trainer.max_steps=2",
        "stages=[prepare,train,merge]", "run_dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    adapter, merged = tmp_path / "run/adapter", tmp_path / "run/merged"
    use(adapter, merged, environment, tmp_path / "elsewhere")

    named = Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    assert named.is_absolute() and named.samefile(tmp_path / "base")
    config = json.loads((merged / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    weights, base = load_file(merged / "model.safetensors"), load_file(tmp_path / "base/model.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()} == {
        name: (tensor.shape, torch.bfloat16) for name, tensor in base.items()
    }
    changed = {name for name in base if not torch.equal(weights[name], base[name])}
    assert changed == {name for name in base if name.endswith("_proj.weight")}
    template = (TEMPLATES / "tinyllama_chat.jinja").read_text()
    for folder in (adapter, merged):
        assert AutoTokenizer.from_pretrained(folder).chat_template == template
    learnt = load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in learnt.values()} == {torch.float32}
    assert any(tensor.any() for name, tensor in learnt.items() if "lora_B" in name)


def test_a_hub_model_keeps_its_name(tiny: Path, rows: Path, hydratune, environment, tmp_path: Path) -> None:
    # the hub's cache as a download leaves it
    hub = tmp_path / "home/hub/models--some--thing"
    (hub / "snapshots").mkdir(parents=True)
    (hub / "snapshots" / ("0" * 40)).symlink_to(tiny)
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text("0" * 40)
    environment["HF_HOME"] = str(tmp_path / "home")
    done = hydratune(
        "model=local", "model.name_or_path=some/thing", "data=jsonl", f"data.path={rows}", "quantization=nf4",
        "lora=all_linear", "trainer.max_steps=1", "stages=[prepare,train,merge]", "run_dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    adapter = tmp_path / "run/adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/thing"
    use(adapter, tmp_path / "run/merged", environment, tmp_path / "elsewhere")
    for path in (tmp_path / "run/merged").rglob("*.json"):
        assert os.fsencode(tmp_path) not in path.read_bytes(), path  # no path of this machine
