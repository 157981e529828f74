"""Training SmolLM2-135M beside a plain trl script, on three kinds of rows; one thread, interleaved."""

import json
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import hydratune
from tests.benchmarks.measure import Sample, in_turn, prepared, rows, run

SCRIPT = Path(__file__).with_name("plain_train.py")
DEMO = Path(hydratune.__file__).with_name("demo") / "train.jsonl"
ACCUMULATE = 2
# rows -> exchanges in a row, what is supervised, rows of a batch, optimizer steps after the first
KINDS = {
    "short answers": ((1, 1), "completion", 4, 5),
    "long chats": ((6, 6), "all", 2, 2),
    "mixed lengths": ((1, 7), "completion", 4, 2),
}
# settings -> ours, and those of the script
WAYS = {
    "float32": (["quantization=none"], []),
    "nf4": (["quantization=nf4"], ["--nf4"]),
    "float32, packed": (["quantization=none", "data.packing=true"], ["--packing"]),
    "float32, beside trl's defaults": (["quantization=none"], ["--defaults"]),  # bfloat16, checkpointing
    "nf4, packed": (["quantization=nf4", "data.packing=true"], ["--nf4", "--packing"]),
}
PAIRS = [("short answers", way, 2) for way in WAYS]
PAIRS += [(kind, way, 1) for kind in ("long chats", "mixed lengths") for way in ("float32", "nf4")]


def table(work: Path) -> list[str]:
    """Rows of the table, and lines about losses and the machine's rate."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    found = []
    for kind, way, repetitions in PAIRS:
        found += _pair(work, kind, way, repetitions)
    return found


def _pair(work: Path, kind: str, way: str, repetitions: int) -> list[str]:
    exchanges, loss, batch, steps = KINDS[kind]
    ours, theirs = WAYS[way]
    if "packed" in way:
        batch, steps = 1, 3  # a pack holds several rows
    place = work / re.sub(r"\W+", "_", f"{kind} {way}")
    place.mkdir()
    data = _written(place / "rows.jsonl", exchanges)
    count = ["--steps", str(steps + 1), "--batch", str(batch), "--accumulate", str(ACCUMULATE)]
    command, model = prepared(
        place / "template", f"data.path={data}", f"data.loss={loss}", "lora=all_linear", "trainer.max_length=512",
        f"trainer.max_steps={steps + 1}", f"trainer.per_device_train_batch_size={batch}",
        f"trainer.gradient_accumulation_steps={ACCUMULATE}", *ours,
    )  # fmt: skip
    log: dict[str, list[list[float]]] = {"ours": [], "theirs": []}

    def us(number: int) -> Sample:
        folder = place / f"ours-{number}"
        shutil.copytree(place / "template", folder)
        sample = run([*command, f"run_dir={folder}", "stages=[prepare,train]"], place, mark=b"step 1/", last=b"step ")
        entries = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
        return _counted(sample, entries, "ours", log)

    def they(number: int) -> Sample:
        folder = place / f"theirs-{number}"
        plain = [sys.executable, str(SCRIPT), model, str(data), str(folder), "--loss", loss, *count, *theirs]
        sample = run(plain, place, mark=b"{'loss'", last=b"{'loss'")
        return _counted(sample, json.loads((folder / "log.json").read_text()), "theirs", log)

    pairs = in_turn(us, they, repetitions)
    apart = max(abs(a - b) for a, b in zip(log["ours"][0], log["theirs"][0], strict=True))
    losses = "" if "packed" in way else f"the losses of both are within {apart:.1g}; "
    share = _share(Path(model), median(ours.speed for ours, _ in pairs))
    return [
        *rows(f"train, {kind}, {way}", "trl", pairs, ["speed", "first_cpu", "first", "anon"]),
        f"train, {kind}, {way}: {losses}our last is {log['ours'][0][-1]:.4f}; {share}.",
    ]


def _counted(sample: Sample, entries: list[dict[str, float]], whose: str, log: dict[str, list[list[float]]]) -> Sample:
    """With the speed, from the tokens that the log counts."""
    log[whose].append([entry["loss"] for entry in entries])
    return replace(sample, tokens=int(entries[-1]["num_tokens"] - entries[0]["num_tokens"]))


def _written(path: Path, exchanges: tuple[int, int]) -> Path:
    """Rows of as many exchanges as said, from the least to the most in turn, made of the demo's."""
    shipped = iter(DEMO.read_text().splitlines())
    least, most = exchanges
    with path.open("w") as file:
        for number in range(400):
            turns = [
                turn
                for _ in range(least + number % (most - least + 1))
                for turn in json.loads(next(shipped))["messages"]
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def _share(model: Path, speed: float) -> str:
    """How much of what the machine multiplies a run reached."""
    size, count = 1024, 20
    one, other = torch.rand(size, size), torch.rand(size, size)
    one @ other
    began = time.process_time()
    for _ in range(count):
        one @ other
    rate = 2 * size**3 * count / (time.process_time() - began)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    weights = sum(tensor.numel() for name, tensor in network.named_parameters() if ".layers." in name)
    # two operations a weight forwards, two for the gradient of its input; the head and the adapter are left out
    return f"{4 * weights * speed / rate:.0%} of the {rate / 1e9:.0f} GFLOP that a CPU second multiplies, in frozen layers alone"
