"""A run of two processes on the CPU, as torchrun or a launcher starts it, beside a run of one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from warm import CALLBACK, until, whole_lines

pytestmark = pytest.mark.slow
Command = Callable[..., subprocess.CompletedProcess[str]]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hydratune"]
NODE = Path(__file__).parents[2] / "launchers" / "node.sh"
WATCH = '''
import json
import os

from transformers import TrainerCallback


class Watch(TrainerCallback):
    """Writes the token ids of each batch, a file for each rank."""

    def on_train_begin(self, args, state, control, train_dataloader=None, **_):
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
        collate = loader.collate_fn

        def watched(features):
            with open(f"{os.environ['WATCHED']}.{args.process_index}", "a") as file:
                file.write(json.dumps([list(feature["input_ids"]) for feature in features]) + "\\n")
            return collate(features)

        loader.collate_fn = watched
'''


def arguments(tiny: Path, rows: Path, *more: str) -> list[str]:
    return [
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
        "lora=all_linear", "lora.lora_dropout=0", "trainer.max_steps=5", "stages=[prepare,train]",
        "trainer.lr_scheduler_type=constant", "trainer.learning_rate=1e-3", *more,
    ]  # fmt: skip


@pytest.fixture
def two(tmp_path: Path, environment: dict[str, str]) -> Command:
    """hydratune under torchrun, in two processes."""

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TORCHRUN, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    return call


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def batches(path: Path) -> list[list[list[int]]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "accumulate", "size", "more"),
    [
        ("none", 1, 2, []),
        ("nf4", 2, 2, []),
        ("none", 2, 5, ["trainer.max_steps=-1", "trainer.num_train_epochs=2"]),  # 24 rows: the last step has 4
        ("none", 1, 5, ["trainer.lean_loss=false", "data.padding_free=false"]),
    ],
)
def test_two_processes_train_what_one_does(
    kind: str,
    accumulate: int,
    size: int,
    more: list[str],
    tiny: Path,
    rows: Path,
    hydratune: Command,
    two: Command,
    environment,
    tmp_path: Path,
) -> None:
    (tmp_path / "watch.py").write_text(WATCH)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path), environment.get("PYTHONPATH")]))
    typed = arguments(
        tiny, rows, f"quantization={kind}", f"trainer.gradient_accumulation_steps={accumulate}",
        "trainer.callbacks=[watch:Watch]", "trainer.gradient_checkpointing=true", *more,
    )  # fmt: skip
    environment["WATCHED"] = str(tmp_path / "one")
    one = hydratune(*typed, f"trainer.per_device_train_batch_size={2 * size}", "run_dir=alone")
    assert one.returncode == 0, one.stdout + one.stderr
    environment["WATCHED"] = str(tmp_path / "two")
    done = two(*typed, f"trainer.per_device_train_batch_size={size}", "run_dir=run", "stages=[prepare,train,merge]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("train     done") == done.stdout.count("merge     done") == 1

    receipts = {
        stage: json.loads((tmp_path / f"run/receipts/{stage}.json").read_text()) for stage in ("train", "merge")
    }
    assert [receipts[stage]["hardware"]["world_size"] for stage in ("train", "merge")] == [2, 1]
    assert receipts["train"]["batch_rows"] == 2 * size * accumulate

    whole, parts = batches(tmp_path / "one.0"), [batches(tmp_path / f"two.{rank}") for rank in range(2)]
    for all_rows, *ranks in zip(whole, *parts, strict=False):
        first, second = ([row for row in rows if len(row) > 1] for rows in ranks)  # without those that fill up
        assert first + second == all_rows
        assert not {*map(tuple, first)} & {*map(tuple, second)}

    alone, together = log(tmp_path / "alone"), log(tmp_path / "run")
    assert [row["step"] for row in together] == [row["step"] for row in alone] and len(alone) >= 4
    for one_step, step in zip(alone, together, strict=True):
        assert step["loss"] == pytest.approx(one_step["loss"], abs=1e-5)
        assert step["grad_norm"] == pytest.approx(one_step["grad_norm"], rel=1e-4)
    assert len({row["loss"] for row in together}) == len(together)
    assert not [path for path in tmp_path.glob("hydratune-*")]


def test_a_signal_stops_both_at_one_step_and_they_go_on(
    tiny: Path, rows: Path, two: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(CALLBACK)
    typed = arguments(
        tiny, rows, "trainer.max_steps=40", "lora.lora_dropout=0.1", "trainer.per_device_train_batch_size=2",
        "trainer.callbacks=[mine:Mine]",
    )  # fmt: skip
    whole = two(*typed, "run_dir=whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    process = subprocess.Popen(
        [*TORCHRUN, *typed, "run_dir=run"],
        cwd=tmp_path, env=environment | {"EACH": "held 9"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: len(whole_lines(tmp_path / "run" / "train_log.jsonl")) > 3)
    process.send_signal(signal.SIGTERM)  # which torchrun hands on
    said, _ = process.communicate(timeout=90)
    assert said.count("saved at step") == 1, said
    assert not (tmp_path / "run" / "adapter").exists()
    saved = int(said.split("saved at step ")[1].split(";")[0])
    assert saved <= 10
    assert len(list((tmp_path / f"run/checkpoints/checkpoint-{saved}").glob("rng_state_*.pth"))) == 2

    done = two(*typed, "run_dir=run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"going on from checkpoint-{saved}" in done.stdout
    assert [row["step"] for row in log(tmp_path / "run")] == list(range(1, 41))
    assert [row["loss"] for row in log(tmp_path / "run")] == [row["loss"] for row in log(tmp_path / "whole")]
    uninterrupted = adapter(tmp_path / "whole")
    assert all(torch.equal(tensor, uninterrupted[name]) for name, tensor in adapter(tmp_path / "run").items())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("lora.rnak=3", "lora.rnak=3: there is no key lora.rnak (did you mean lora.r?)."),
        (
            "model.device_map=auto",
            "2 processes were started, each with a device of its own: set model.device_map=null.",
        ),
        ("trainer.fsdp=true", "trainer.fsdp=true needs CUDA, and this machine has none: set trainer.fsdp=false."),
        ("--multirun", "A sweep's jobs are processes of their own, and 2 were started"),
    ],
)
def test_a_mistake_is_said_once(override: str, sentence: str, tiny, rows, environment, tmp_path: Path) -> None:
    began = time.monotonic()
    ended = ranks_without_a_launcher(arguments(tiny, rows, override, "run_dir=run"), environment, tmp_path)
    assert [status for status, _ in ended] == [2, 2], ended
    assert ended[0][1].count("hydratune: ") == 1 and sentence in ended[0][1]
    assert ended[1][1] == "" and "Traceback" not in ended[0][1]
    assert time.monotonic() - began < 300  # and not the ten minutes that rank 1 would wait for rank 0
    assert not (tmp_path / "run").exists()


def ranks_without_a_launcher(typed: list[str], environment: dict[str, str], folder: Path) -> list[tuple[int, str]]:
    """Two processes with torchrun's variables alone: nothing ends the second when the first fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "hydratune", *typed], cwd=folder, text=True, stdout=subprocess.DEVNULL,
            env={**environment, **shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def test_a_launcher_shows_the_sentence_once(tiny: Path, rows: Path, environment, tmp_path: Path) -> None:
    environment |= {"NPROC": "2", "HYDRATUNE_PYTHON": sys.executable}
    done = subprocess.run(
        [str(NODE), *arguments(tiny, rows, "lora.rnak=3", "run_dir=run")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2  # and not the 1 that torchrun answers any failure with
    assert done.stderr.count("there is no key lora.rnak") == 1
    assert not (tmp_path / "run").exists()


def test_a_launcher_trains(tiny: Path, rows: Path, environment, tmp_path: Path) -> None:
    environment |= {"NPROC": "2", "HYDRATUNE_PYTHON": sys.executable}
    done = subprocess.run(
        [str(NODE), *arguments(tiny, rows, "lora=none", "run_dir=run")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run/merged/model.safetensors").is_file()
    assert len(log(tmp_path / "run")) == 5
    other = subprocess.run(
        [sys.executable, "-m", "hydratune", "run_dir=run", "stages=[train]", "trainer.max_steps=9"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert other.returncode == 2, other.stderr


def test_a_launcher_hands_a_signal_on_and_ends_with_75(tiny: Path, rows: Path, environment, tmp_path: Path) -> None:
    environment |= {"NPROC": "2", "HYDRATUNE_PYTHON": sys.executable}
    process = subprocess.Popen(
        [str(NODE), *arguments(tiny, rows, "trainer.max_steps=2000", "run_dir=run")],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "train_log.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)  # to the launcher alone, as Slurm does
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert said.count("saved at step") == 1
