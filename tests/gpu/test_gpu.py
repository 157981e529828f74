"""What only a CUDA device shows: paged optimizers, float16 training, device maps, memory.

Without a device these fail instead of being skipped; `make test` leaves them out by their marker.
"""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from hydratune.build.hardware import resolve
from hydratune.build.model import load_model
from hydratune.config.load import CONF_DIR, to_config
from hydratune.config.schema import Config, ModelConf, QuantizationConf
from hydratune.run.layout import RunDir
from hydratune.stages import prepare
from hydratune.stages.train import build_trainer

pytestmark = pytest.mark.gpu
MIB = 2**20


@pytest.fixture(autouse=True)
def cuda() -> None:
    assert torch.cuda.is_available(), "tests/gpu needs a CUDA device: leave it out with -m 'not gpu'"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def configuration(tiny: Path, rows: Path, *overrides: str) -> Config:
    shared = [
        f"model.name_or_path={tiny}", f"data.path={rows}", f"cache_dir={rows.parent}/cache", "trainer.max_steps=3",
        "trainer.logging_steps=1",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return to_config(compose("config", [*overrides, *shared]))


def prepared_trainer(config: Config, run: RunDir):
    prepare.run(config, run, resolve(config))
    return build_trainer(config, run, resolve(config))


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_a_quantized_model_gets_a_paged_optimizer(tiny: Path, rows: Path, tmp_path: Path) -> None:
    import bitsandbytes as bnb

    config = configuration(tiny, rows, "model=local", "data=jsonl", "quantization=nf4")
    hardware = resolve(config)
    assert (hardware.device, hardware.optim) == ("cuda", "paged_adamw_32bit")
    trainer = prepared_trainer(config, RunDir(tmp_path / "run"))
    trainer.train()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # without accelerate's wrapper
    assert isinstance(optimizer, bnb.optim.AdamW) and optimizer.is_paged
    assert len(losses(trainer)) == 3 and all(math.isfinite(loss) for loss in losses(trainer))
    # two layers of width 32: what is left are the libraries' work spaces
    assert 0 < torch.cuda.max_memory_allocated() < 512 * MIB


def test_the_float16_recipe_trains_float32_adapters(tiny: Path, rows: Path, tmp_path: Path) -> None:
    config = configuration(tiny, rows, "experiment=tinyllama_ultrachat_qlora", "trainer.gradient_accumulation_steps=1")
    trainer = prepared_trainer(config, RunDir(tmp_path / "run"))
    assert trainer.args.fp16 and not trainer.args.bf16
    model = trainer.model
    assert model is not None
    assert config.model.device_map == "auto"
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    adapter = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(adapter) == 2 * 7 * 2 and all("lora_" in name for name in adapter)
    before = {name: p.detach().clone() for name, p in adapter.items()}
    trainer.train()
    assert {p.dtype for p in adapter.values()} == {torch.float32}
    assert all(p.isfinite().all() for p in adapter.values())
    assert any(not torch.equal(p, before[name]) for name, p in adapter.items())
    assert len(losses(trainer)) == 3 and all(math.isfinite(loss) for loss in losses(trainer))


def test_nf4_weights_take_a_third_of_half_precision(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=8)
    ).save_pretrained(tmp_path)
    hardware = resolve(Config())
    taken = []
    for kind in ("none", "nf4"):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        model = load_model(ModelConf(device_map="auto"), str(tmp_path), hardware, QuantizationConf(kind))
        taken.append(torch.cuda.memory_allocated() - before)
        del model
    assert taken[1] < taken[0] / 3, [f"{size / MIB:.0f} MiB" for size in taken]


def test_a_whole_run(tiny: Path, rows: Path, hydratune, environment, tmp_path: Path) -> None:
    environment.pop("CUDA_VISIBLE_DEVICES")  # the other tests hide the device
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    done = hydratune(
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=nf4_double",
        "trainer.max_steps=3", "generate.prompts=[What is fern?]", "generate.max_new_tokens=4", "run_dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    receipt = json.loads((tmp_path / "run/receipts/train.json").read_text())
    assert (receipt["hardware"]["device"], receipt["hardware"]["optim"]) == ("cuda", "paged_adamw_32bit")
    assert json.loads((tmp_path / "run/merge_report.json").read_text())["merge/kl"] < 1e-3
    assert len((tmp_path / "run/samples.jsonl").read_text().splitlines()) == 1
