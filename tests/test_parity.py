"""A run trains what a plain trl script trains: the same losses and adapter, bit by bit where it computes the same way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("plain_sft.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "kind", "accumulate"), [("all", "none", 1), ("completion", "none", 2), ("completion", "nf4", 2)]
)
def test_same_losses_and_adapter_as_a_plain_script(
    loss, kind, accumulate, tiny, rows, hydratune, environment, tmp_path
):
    ours = hydratune(
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", f"quantization={kind}",
        "lora=all_linear", "trainer.max_steps=4", "trainer.save_steps=100", "stages=[prepare,train]", "run_dir=run",
        f"data.loss={loss}", f"trainer.gradient_accumulation_steps={accumulate}", "trainer.warmup_steps=1",
        "data.padding_free=false", "trainer.lean_loss=false",
    )  # fmt: skip
    assert ours.returncode == 0, ours.stdout + ours.stderr
    plain = subprocess.run(
        [
            sys.executable, str(SCRIPT), str(tiny), str(rows), "plain", "--loss", loss, "--warmup", "1",
            "--accumulate", str(accumulate), *(["--nf4"] if kind == "nf4" else []),
        ],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stdout + plain.stderr

    fast = hydratune("--from", "run", "data.padding_free=null", "trainer.lean_loss=true", "run_dir=fast")
    assert fast.returncode == 0, fast.stdout + fast.stderr

    log = [json.loads(line) for line in (tmp_path / "run/train_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert [row["loss"] for row in log] == json.loads((tmp_path / "plain/losses.json").read_text())

    a = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    b = load_file(tmp_path / "plain/adapter/adapter_model.safetensors")
    assert a.keys() == b.keys() and len(a) == 2 * 7 * 2  # layers, linears, A and B
    assert all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
    by_default = [json.loads(line)["loss"] for line in (tmp_path / "fast/train_log.jsonl").read_text().splitlines()]
    assert by_default == pytest.approx([row["loss"] for row in log], rel=1e-6)
    c = load_file(tmp_path / "fast/adapter/adapter_model.safetensors")
    assert a.keys() == c.keys()
    for name in a:
        torch.testing.assert_close(c[name], a[name], rtol=1e-3, atol=2e-6)  # a step of Adam divides by tiny numbers
    assert any(a[name].any() for name in a if "lora_B" in name)  # B starts at zero: it was trained
