"""Eight trainings of ten steps as a sweep, beside eight `trl sft` runs and a sweep of Hydra's basic launcher; one thread."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import hydratune
from tests.benchmarks.measure import BIN, HYDRATUNE, Sample, prepared, rows, run

APP = Path(__file__).with_name("plain_sweep.py")
DEMO = Path(hydratune.__file__).with_name("demo") / "train.jsonl"
RATES = ["1e-4", "2e-4", "3e-4", "4e-4", "5e-4", "6e-4", "8e-4", "1e-3"]  # a job each
STEPS, BATCH = 10, 8
LOOKS = 1000  # jobs of the sweep that is only looked at


def table(work: Path) -> list[str]:
    """Rows of the table, and lines about what the sweep takes beyond its training."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    place = work / "sweep"
    place.mkdir()
    _, smollm2 = prepared(place / "converted", "quantization=none")
    data = _rows(place)
    found = []
    for name, model in (("a tiny model", _tiny(place / "tiny", smollm2)), ("SmolLM2-135M", smollm2)):
        found += _beside(place / name.split()[-1], name, model, data)
    return found + _looks(place)


def _beside(place: Path, name: str, model: str, data: Path) -> list[str]:
    place.mkdir()
    ours = run(
        [HYDRATUNE, "-m", "model=local", f"model.name_or_path={model}", "data=jsonl", f"data.path={data}/messages.jsonl",
         "data.loss=completion", "quantization=none", "lora=all_linear", "trainer.max_length=512",
         f"trainer.max_steps={STEPS}", f"trainer.per_device_train_batch_size={BATCH}",
         f"trainer.learning_rate={','.join(RATES)}", "stages=[prepare,train]", "hydra.sweep.dir=ours"], place,
    )  # fmt: skip
    trained = [
        json.loads(path.read_text())["metrics"]["train/seconds"] for path in place.glob("ours/*/receipts/train.json")
    ]
    assert len(trained) == len(RATES)
    cpu = wall = anon = 0.0
    for rate in RATES:
        one = run(_trl(model, data, rate), place)
        cpu, wall, anon = cpu + one.cpu, wall + one.wall, max(anon, one.anon)
    trl = Sample(wall, cpu, anon, float("nan"))
    basic = run(
        [sys.executable, str(APP), "-m", f"model={model}", f"data={data}/prompts", f"steps={STEPS}", f"batch={BATCH}",
         f"learning_rate={','.join(RATES)}", "hydra.sweep.dir=basic"], place,
    )  # fmt: skip
    what = f"sweep, {len(RATES)} jobs of {STEPS} steps, {name}"
    return [
        *rows(what, f"{len(RATES)} runs of `trl sft`", [(ours, trl)], ["cpu", "wall"]),
        *rows(what, "Hydra's basic launcher, trl", [(ours, basic)], ["cpu", "wall", "anon"]),
        f"{what}: {ours.wall:.1f} s in all, {sum(trained):.1f} s of them training ({ours.wall / sum(trained):.2f} times).",
    ]


def _trl(model: str, data: Path, rate: str) -> list[str]:
    return [
        str(BIN / "trl"), "sft", "--model_name_or_path", model, "--dtype", "float32", "--dataset_name",
        str(data / "prompts"), "--max_steps", str(STEPS), "--per_device_train_batch_size", str(BATCH),
        "--learning_rate", rate, "--output_dir", f"trl-{rate}", "--use_peft", "--lora_r", "16", "--lora_alpha", "32",
        "--lora_target_modules", "all-linear", "--use_cpu", "--bf16", "False", "--gradient_checkpointing", "False",
        "--max_length", "512", "--lr_scheduler_type", "cosine", "--logging_steps", "1", "--report_to", "none",
    ]  # fmt: skip


def _rows(place: Path) -> Path:
    """The same rows as chats for us and as prompts with completions for trl; returns their folder."""
    folder = place / "rows"
    (folder / "prompts").mkdir(parents=True)
    chats = [json.loads(line)["messages"] for line in DEMO.read_text().splitlines()[:400]]
    prompts = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats]
    (folder / "messages.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (folder / "prompts/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return folder


def _tiny(folder: Path, like: str) -> str:
    """A random model with the other's tokenizer and two thin layers."""
    config = AutoConfig.from_pretrained(like)
    config.update(
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
         "num_key_value_heads": 2, "layer_types": None}
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return str(folder)


def _looks(place: Path) -> list[str]:
    """Status and report of a sweep of many jobs, beside an interpreter that imports what a report needs."""
    from tests.sweeps_on_disk import Job, write_sweep

    folder, random = place / "many", np.random.default_rng(0)
    write_sweep(
        folder, [Job([f"lora.r={n + 1}"], random.random(100) < 0.5, higher_is_better=True) for n in range(LOOKS)]
    )
    libraries = "import numpy, scipy.stats, statsmodels.stats.contingency_tables, matplotlib.figure"
    plain = run([sys.executable, "-c", libraries], place)
    nothing = run([sys.executable, "-c", ""], place)
    found = []
    for verb, beside, other in (
        ("status", "a Python that does nothing", nothing),
        ("report", "the imports alone", plain),
    ):
        sample = run([HYDRATUNE, "sweep", verb, str(folder)], place)
        found += rows(f"sweep {verb}, {LOOKS} jobs", beside, [(sample, other)], ["wall", "cpu", "anon"])
    return found
