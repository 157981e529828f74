"""The stage merge from the command line: whole or not at all, proven equal to what was trained, refused by name."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hydratune.build import merging
from hydratune.build.hardware import resolve
from hydratune.config.load import to_config
from hydratune.config.schema import RunError
from hydratune.run.layout import RunDir
from hydratune.stages import merge as stage
from tests.benchmarks.shapes import checkpoint, trained_run

pytestmark = pytest.mark.slow


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hydratune", *arguments]


def is_whole(folder: Path) -> bool:
    """Whether every tensor that the index names can be read, and the configuration is there."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as opened:
            opened.get_tensor(name)
    return (folder / "config.json").is_file()


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose merge takes a second or two: one layer of TinyLlama's shape, its embedding and its head."""
    folder = tmp_path_factory.mktemp("shaped")
    return trained_run(folder / "run", checkpoint(folder / "model", layers=1), "none", layers=1)


def test_killed_at_random_moments(shaped: Path, environment: dict[str, str], tmp_path: Path) -> None:
    run = shutil.copytree(shaped, tmp_path / "run")
    typed = command(f"run_dir={run}", "stages=[merge]")
    done = subprocess.run(typed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    takes = json.loads((run / "receipts" / "merge.json").read_text())["seconds"]
    undisturbed = {path.name: path.read_bytes() for path in (run / "merged").iterdir()}
    (run / "receipts" / "merge.json").unlink()
    shutil.rmtree(run / "merged")
    rng, interrupted = random.Random(0), 0
    for _ in range(10):
        process = subprocess.Popen(typed, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert any(line.startswith("merge") for line in process.stdout), "it ended before it began to merge"
        time.sleep(takes * rng.uniform(0.0, 0.9))
        process.kill()
        process.wait()
        interrupted += bool(list(run.glob(".merged.*")))
        if (run / "merged").exists():
            assert is_whole(run / "merged")
            shutil.rmtree(run / "merged")
        (run / "receipts" / "merge.json").unlink(missing_ok=True)
    assert interrupted >= 3, "the kills came too early or too late to say anything"
    done = subprocess.run(typed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (run / "merged").iterdir()} == undisturbed
    assert not list(run.glob(".merged.*"))


def test_a_full_disk_loses_nothing(shaped: Path, environment: dict[str, str], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200M", "tmpfs", small], check=True)
    try:
        run = shutil.copytree(shaped, small / "run")
        typed = command(f"run_dir={run}", "stages=[merge]")
        done = subprocess.run(typed, env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert "No room was left for what stage merge writes" in done.stderr
        assert not (run / "merged").exists() and not list(run.glob(".merged.*"))
        assert (run / "adapter/adapter_model.safetensors").stat().st_size
        subprocess.run(["mount", "-o", "remount,size=900M", small], check=True)
        done = subprocess.run(typed, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert is_whole(run / "merged")
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A QLoRA run of the tiny model, stored in bfloat16, merged; in a folder with its cache."""
    from tests.conftest import chat_rows

    folder = tmp_path_factory.mktemp("trained")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows()))
    shutil.copytree(tiny, folder / "base")
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(folder / "base")
    call(
        folder, "model=local", "model.name_or_path=base", "data=jsonl", "data.path=rows.jsonl", "trainer.max_steps=6",
        "trainer.learning_rate=1e-2", "quantization=nf4_double", "stages=[prepare,train,merge]", "run_dir=run",
    )  # fmt: skip
    return folder


def call(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ, "HYDRATUNE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(command(*arguments), cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def another(trained: Path, name: str, *overrides: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A merge of the same adapter under other settings, in a run of its own."""
    run = shutil.copytree(trained / "run", trained / name)
    (run / "receipts" / "merge.json").unlink()
    shutil.rmtree(run / "merged")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["merge"] |= dict(override.split("=") for override in overrides)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return call(trained, f"run_dir={name}", "stages=[merge]", status=status)


def report(trained: Path, name: str) -> dict:
    return json.loads((trained / name / "merge_report.json").read_text())


def test_the_certificate(trained: Path) -> None:
    found = report(trained, "run")
    assert found["merge/base"] == "dequantized" and found["merge/rows"] == 8
    assert found["merge/kl"] < 1e-4  # bfloat16's rounding
    assert found["merge/same_prompt_tokens"] and found["merge/vocabulary_fits"] and found["merge/tied_as_configured"]
    assert json.loads((trained / "run/metrics.json").read_text())["merge/kl"] == found["merge/kl"]
    names = {path.name for path in (trained / "run/merged").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names


def test_in_float32_it_is_the_trained_model(trained: Path) -> None:
    another(trained, "exact", "dtype=float32")
    found = report(trained, "exact")
    assert found["merge/max_logit_difference"] < 1e-4 and found["merge/kl"] < 1e-9
    assert found["merge/same_greedy_tokens"] == 1.0
    stored = load_file(trained / "exact/merged/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_peft_gives_the_same(trained: Path) -> None:
    another(trained, "by_peft", "method=peft", "dtype=float32")
    another(trained, "streamed", "dtype=float32")
    ours, theirs = (load_file(trained / name / "merged/model.safetensors") for name in ("streamed", "by_peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_base_with_the_lower_divergence_is_taken(trained: Path) -> None:
    another(trained, "measured", "base=measure", "dtype=float32")
    found = report(trained, "measured")
    assert found["merge/base"] == "dequantized"
    assert found["kl_by_base"]["dequantized"] < found["kl_by_base"]["original"] / 100
    assert not list((trained / "measured").glob(".merged.*"))


def test_a_corrupted_tensor_fails_the_certificate_and_is_named(trained: Path, monkeypatch) -> None:
    """With one tensor of the folder changed before it is verified, as a broken disk or a bug would."""
    name = "model.layers.1.mlp.up_proj.weight"
    run = shutil.copytree(trained / "run", trained / "corrupted")
    (run / "receipts" / "merge.json").unlink()
    # the merge reads the corrupted file, and the certificate's model the right one
    text = (run / "config.yaml").read_text()

    config = to_config(yaml.safe_load(text))
    config.cache_dir = str(trained / "cache")
    real = merging.merge

    def corrupted(*arguments, **options):
        planned = real(*arguments, **options)
        out = arguments[2]
        written = load_file(out / "model.safetensors")
        written[name] = written[name] * 1.5
        save_file(written, out / "model.safetensors", {"format": "pt"})
        return planned

    monkeypatch.setattr(stage, "merge", corrupted)
    with pytest.raises(RunError, match=rf"is not the one that was trained: KL .* most differs {name}, by 5\.0e-01"):
        stage.run(config, RunDir(run), resolve(config))
    assert not list(run.glob(".merged.*"))


def test_weights_that_the_files_lack_are_refused_before_training(trained: Path, tmp_path: Path, refused) -> None:
    base = shutil.copytree(trained / "base", tmp_path / "fused")
    tensors = load_file(base / "model.safetensors")
    for layer in (0, 1):
        parts = [tensors.pop(f"model.layers.{layer}.self_attn.{one}_proj.weight") for one in "qkv"]
        tensors[f"model.layers.{layer}.self_attn.qkv.weight"] = torch.cat(parts)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    said = refused("model=local", f"model.name_or_path={base}", "data=jsonl", f"data.path={trained}/rows.jsonl")
    assert "6 adapted modules, such as model.layers.0.self_attn." in said
    assert "can't be merged tensor by tensor: set merge.method=peft." in said


def test_a_signal_is_no_crash(shaped: Path, environment: dict[str, str], tmp_path: Path) -> None:
    run = shutil.copytree(shaped, tmp_path / "run")
    process = subprocess.Popen(
        command(f"run_dir={run}", "stages=[merge]"),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        if line.startswith("merge"):
            break
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)
    assert process.returncode in (75, 0), said
    assert not (run / "merged").exists() or is_whole(run / "merged")
