"""What only several GPUs show: one process for each, and the weights in shards over them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.gpu
NODE = Path(__file__).parents[2] / "launchers" / "node.sh"


@pytest.fixture
def train(tiny: Path, rows: Path, environment: dict[str, str], tmp_path: Path):
    """Five steps of rows in batches of four, in one process or by launchers/node.sh in two; returns their losses."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    environment.pop("CUDA_VISIBLE_DEVICES")  # the other tests hide the devices
    environment |= {"NPROC": "2", "HYDRATUNE_PYTHON": sys.executable}

    def call(run: str, processes: int, *more: str) -> list[float]:
        command = [str(NODE)] if processes == 2 else [sys.executable, "-m", "hydratune"]
        done = subprocess.run(
            [
                *command, "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "lora.lora_dropout=0",
                "trainer.max_steps=5", f"trainer.per_device_train_batch_size={4 // processes}", "model.dtype=bfloat16",
                "stages=[prepare,train,merge]", f"run_dir={run}", *more,
            ],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        receipt = json.loads((tmp_path / run / "receipts/train.json").read_text())
        assert (receipt["hardware"]["device"], receipt["hardware"]["world_size"]) == ("cuda", processes)
        return [json.loads(line)["loss"] for line in (tmp_path / run / "train_log.jsonl").read_text().splitlines()]

    return call


@pytest.mark.parametrize("more", [["trainer=sft"], ["trainer=fsdp"]], ids=["whole", "shards"])
@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_two_gpus_train_what_one_does(kind: str, more: list[str], train, tmp_path: Path) -> None:
    shared = [f"quantization={kind}", "lora=all_linear", "trainer.optim=adamw_torch"]
    if kind == "nf4":
        shared.append("quantization.bnb_4bit_quant_storage=bfloat16")
    alone, together = train("alone", 1, *shared), train("run", 2, *shared, *more)
    assert together == pytest.approx(alone, abs=2e-2)
    tensors = [load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("alone", "run")]
    assert {name: t.shape for name, t in tensors[0].items()} == {name: t.shape for name, t in tensors[1].items()}
    assert any(t.any() for name, t in tensors[1].items() if "lora_B" in name)


def test_sharded_training_goes_on(train, tmp_path: Path) -> None:
    shared = ["trainer=fsdp", "quantization=none", "lora=all_linear", "trainer.save_steps=2"]
    whole = train("run", 2, *shared)
    for left in ("receipts/train.json", "checkpoints/checkpoint-5"):
        path = tmp_path / "run" / left
        path.unlink() if path.is_file() else path.rename(path.with_name("gone"))
    assert train("run", 2, *shared) == pytest.approx(whole, abs=1e-3)
