"""The stage merge from the command line: whole or not at all, proven equal to what was trained, refused by name."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from warm import run_warm, until

from hydratune import pipeline
from hydratune.build.expected import in_float32
from hydratune.build.hardware import resolve
from hydratune.config.load import to_config
from hydratune.config.saved import put
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
    for number in range(10):
        process = subprocess.Popen(typed, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert any(line.startswith("merge") for line in process.stdout), "it ended before it began to merge"
        if number < 4:  # so that some meet a merge at work however busy the machine is
            until(lambda: process.poll() is not None or list(run.glob(".merged.*")))  # noqa: B023
        else:
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
    done = run_warm(arguments, folder, env)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def another(trained: Path, name: str, *overrides: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A merge of the same adapter under other settings, in a copy of the run."""
    shutil.copytree(trained / "run", trained / name)
    return call(trained, f"run_dir={name}", "stages=[merge]", *(f"merge.{one}" for one in overrides), status=status)


def report(trained: Path, name: str) -> dict:
    return json.loads((trained / name / "merge_report.json").read_text())


def test_the_certificate(trained: Path) -> None:
    found = report(trained, "run")
    assert found["merge/base"] == "dequantized" and found["merge/rows"] == 8
    assert found["merge/kl"] < 1e-4  # bfloat16's rounding
    assert found["merge/kl_beyond_rounding"] < 1e-12 and found["merge/same_greedy_beyond_rounding"] == 1.0
    assert found["merge/wrong_weights"] == 0 and found["merge/tensors"] == 21
    assert found["merge/most_different_weight"] and found["merge/max_weight_difference"] < 4e-3
    assert found["merge/same_prompt_tokens"] and found["merge/vocabulary_fits"] and found["merge/tied_as_configured"]
    assert found["merge/answers_end"]
    assert json.loads((trained / "run/metrics.json").read_text())["merge/kl"] == found["merge/kl"]
    names = {path.name for path in (trained / "run/merged").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names


def test_a_run_ends_with_the_certificate(trained: Path) -> None:
    said = call(trained, "run_dir=run", "stages=[merge]").stdout
    assert "already finished, skipped" in said
    line = (
        r"merged against trained model: KL \d\.\de-\d+, logits within \d\.\de-\d+, \d+\.\d% of the likeliest tokens the"
    )
    assert re.search(rf"\n{line} same \(8 prompts shipped with hydratune\)\n", said)


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


def test_a_refused_merge_is_done_again_without_training(trained: Path) -> None:
    """merge.* may change in a run that is trained."""
    done = another(trained, "strict", "tolerance=1e-12", status=1)
    assert "set merge.dtype=float32." in done.stderr and "run_dir" not in done.stderr
    assert report(trained, "strict")["merge/wrong_weights"] == 0
    said = call(trained, "run_dir=strict", "stages=[train,merge]", "merge.dtype=float32").stdout
    assert "train     done: already finished, skipped" in said
    assert report(trained, "strict")["merge/kl"] < 1e-12
    call(trained, "run_dir=strict", "stages=[merge]", "merge.verify=false")
    assert not (trained / "strict/merge_report.json").exists(), "it tells of another merge"


LINEAR, BIASED = "model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.bias"
# base, and what is trained on it
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "nf4 of bfloat16": ("base", {"quantization.kind": "nf4"}),
    "nf4 of float32": ("biased", {"model.dtype": "bfloat16"}),
    "nf4 of float32, to bfloat16": ("biased", {"model.dtype": "bfloat16", "merge.dtype": "bfloat16"}),
    "nf4 of float32, by peft": ("biased", {"model.dtype": "bfloat16", "merge.method": "peft"}),
    "lora of float32": ("biased", {"quantization.kind": "none", "model.dtype": "bfloat16"}),
    "dora": ("base", {"lora.use_dora": True}),
    "int8": ("biased", {"quantization.kind": "int8", "model.dtype": "bfloat16"}),
    "bias": ("biased", {"lora.target_modules": ["q_proj", "up_proj"], "lora.extra": {"lora_bias": True}}),
    "tied embedding": ("tied", {"lora.target_modules": ["q_proj", "embed_tokens"], "model.dtype": "bfloat16"}),
    "whole modules": ("base", {"lora.modules_to_save": ["lm_head"], "model.dtype": "bfloat16"}),
}
CORRUPTED = [
    *((kind, LINEAR, factor) for kind in KINDS for factor in ("1.009", "one")),
    *((kind, "model.embed_tokens.weight", "1.009") for kind in KINDS),
    *((kind, "lm_head.weight", "one") for kind in KINDS),
    *((kind, BIASED, "one") for kind, (base, _) in KINDS.items() if base == "biased"),
    ("nf4 of bfloat16", "model.norm.weight", "1.009"),
]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, trained: Path, tiny: Path) -> dict[str, Path]:
    """A trained run of each of KINDS; each correct merge has been accepted by the certificate."""
    folder = tmp_path_factory.mktemp("kinds")
    shutil.copytree(trained / "base", folder / "base")
    for name, options in {
        "biased": {"attention_bias": True, "mlp_bias": True},
        "tied": {"tie_word_embeddings": True},
    }.items():
        shutil.copytree(tiny, folder / name)
        (folder / name / "model.safetensors").unlink()
        config = LlamaConfig.from_pretrained(tiny, **options)
        torch.manual_seed(1)
        model: Any = LlamaForCausalLM(config).to(torch.float32)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim == 1 else None
        model.save_pretrained(folder / name)
    found = {}
    for number, (kind, (base, settings)) in enumerate(KINDS.items()):
        config = to_config(yaml.safe_load((trained / "run/config.yaml").read_text()))
        config.model.name_or_path, config.run_dir, config.cache_dir = (
            str(folder / base),
            str(folder / str(number)),
            str(folder / "cache"),
        )
        config.trainer.max_steps, config.stages = 3, ["prepare", "train", "merge"]
        for key, value in settings.items():
            put(config, key, value)
        pipeline.run(config, [])
        found[kind] = folder / str(number)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_right_merges_are_accepted(kinds: dict[str, Path], kind: str) -> None:
    found = json.loads((kinds[kind] / "merge_report.json").read_text())
    assert found["merge/wrong_weights"] == 0 and found["merge/kl_beyond_rounding"] < 1e-12
    stored = load_file(kinds[kind] / "merged/model.safetensors")
    if {tensor.dtype for tensor in stored.values()} == {torch.float32} and kind != "int8":
        assert found["merge/kl"] < 1e-12 and found["merge/max_logit_difference"] < 1e-5


@pytest.mark.parametrize(("kind", "name", "how"), CORRUPTED)
def test_a_corrupted_tensor_fails_the_certificate_and_is_named(
    kinds: dict[str, Path], kind: str, name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one tensor of the folder changed before it is verified, as a broken disk or a bug would."""

    def corrupt(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        # a tied head is stored under the embedding's name, unless it was trained apart
        stored = name if name in tensors else "model.embed_tokens.weight"
        if how == "one":
            tensors[stored].view(-1)[20] += tensors[stored].float().abs().max().to(tensors[stored].dtype)
        else:
            tensors[stored] *= float(how)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(RunError, match=rf"is not the one that was trained: .* most differs {re.escape(name)}, by \d"):
        merge_again(kinds[kind], tmp_path / "run", monkeypatch, corrupt)
    assert not list((tmp_path / "run").glob(".merged.*")) and not (tmp_path / "run/merged").exists()


def merge_again(trained: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]) -> None:
    """In a copy of the run, with `change` done to the folder before it is verified."""
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "merged")
    config = to_config(yaml.safe_load((copy / "config.yaml").read_text()))
    config.cache_dir = str(trained.parent / "cache")
    real = stage.end_answers

    def changed(folder: Path, stop: int | None) -> None:
        real(folder, stop)
        change(folder)

    monkeypatch.setattr(stage, "end_answers", changed)
    stage.run(config, RunDir(copy), resolve(config))


def edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def add_bos(folder: Path) -> None:
    post = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }  # fmt: skip
    edit(folder, "tokenizer.json", post_processor=post)


def mix_roles_up(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("message['role'] +", "message['role'].replace('system', 'user') +"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: None, ""),
        (add_bos, "its tokenizer makes other tokens of a prompt"),
        (mix_roles_up, "its tokenizer makes other tokens of a prompt"),
        (
            lambda folder: edit(folder, "generation_config.json", eos_token_id=77),
            "its generation_config.json doesn't name the token that ends a turn",
        ),
        (
            lambda folder: edit(folder, "config.json", rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
            "The merged model is not the one that was trained: 0 weights are others",
        ),
    ],
)
def test_a_folder_that_would_be_served_otherwise_fails(
    change: Callable[[Path], None], said: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not said:  # the control: such a copy passes
        return merge_again(trained / "run", tmp_path / "run", monkeypatch, change)
    with pytest.raises(RunError, match=re.escape(said)):
        merge_again(trained / "run", tmp_path / "run", monkeypatch, change)


def test_it_is_measured_on_validation_rows(trained: Path) -> None:
    call(
        trained, "model=local", "model.name_or_path=base", "data=jsonl", "data.path=rows.jsonl", "trainer.max_steps=1",
        "data.validation_share=0.25", "stages=[prepare,train,merge]", "run_dir=held_out",
    )  # fmt: skip
    assert report(trained, "held_out")["merge/measured_on"] == "validation rows"
    assert report(trained, "held_out")["merge/rows"] == 6


def test_layer_by_layer_it_computes_the_same(trained: Path) -> None:
    """Where a float32 model has no room, each layer is widened for as long as it runs."""
    model: Any = AutoModelForCausalLM.from_pretrained(trained / "run/merged", dtype=torch.bfloat16)
    ids = torch.arange(3, 60)[None]
    before = {name: (tensor.dtype, tensor.clone()) for name, tensor in model.state_dict().items()}
    with torch.no_grad(), in_float32(model, free=0):
        ours = model(ids).logits
    assert ours.dtype == torch.float32
    after = model.state_dict()
    assert all(after[name].dtype == kind and torch.equal(after[name], t) for name, (kind, t) in before.items())
    with torch.no_grad():
        assert torch.equal(ours, model.float()(ids).logits)


def test_folders_and_code_of_the_base_are_carried(trained: Path, tmp_path: Path) -> None:
    """Other chat templates, and a model whose code lies in its folder."""
    shutil.copytree(trained / "base", tmp_path / "base")
    (tmp_path / "base/additional_chat_templates").mkdir()
    (tmp_path / "base/additional_chat_templates/tool_use.jinja").write_text("{{ messages[0].content }}")
    (tmp_path / "base/my.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\nclass MyConfig(LlamaConfig):\n"
        "    model_type = 'mytiny'\n\n\nclass MyForCausalLM(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )
    auto = {"AutoConfig": "my.MyConfig", "AutoModelForCausalLM": "my.MyForCausalLM"}
    edit(tmp_path / "base", "config.json", architectures=["MyForCausalLM"], model_type="mytiny", auto_map=auto)
    shutil.copy(trained / "rows.jsonl", tmp_path)
    call(
        tmp_path, "model=local", "model.name_or_path=base", "data=jsonl", "data.path=rows.jsonl", "trainer.max_steps=1",
        "model.trust_remote_code=true", "stages=[prepare,train,merge]", "run_dir=run",
    )  # fmt: skip
    assert (tmp_path / "run/merged/additional_chat_templates/tool_use.jinja").is_file()
    assert (tmp_path / "run/merged/my.py").is_file() and report(tmp_path, "run")["merge/wrong_weights"] == 0


def test_the_end_of_a_turn_is_written_down(trained: Path, tmp_path: Path) -> None:
    """Where the chat template ends turns with another token than the model's own."""
    shutil.copytree(trained / "base", tmp_path / "base")
    template = (tmp_path / "base/chat_template.jinja").read_text()
    (tmp_path / "base/chat_template.jinja").write_text(template.replace("eos_token", "unk_token"))
    shutil.copy(trained / "rows.jsonl", tmp_path)
    call(
        tmp_path, "model=local", "model.name_or_path=base", "data=jsonl", "data.path=rows.jsonl", "trainer.max_steps=1",
        "stages=[prepare,train,merge]", "run_dir=run",
    )  # fmt: skip
    written = json.loads((tmp_path / "run/merged/generation_config.json").read_text())
    assert written["eos_token_id"] == [2, 0]


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
