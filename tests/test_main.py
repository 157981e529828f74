"""What a user meets at the command line: mistakes, and a run that is opened again or stopped."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from warm import CALLBACK, until

Command = Callable[..., subprocess.CompletedProcess[str]]


def arguments(tiny: Path, rows: Path, *more: str) -> list[str]:
    return [
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
        "run_dir=run", "trainer.max_steps=4", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("lora.rnak=3", "lora.rnak=3: there is no key lora.rnak (did you mean lora.r?)."),
        ("+lora.rnak=3", "+lora.rnak=3: there is no key lora.rnak (did you mean lora.r?)."),
        ("lora.bias=al", "lora.bias is one of none, all, lora_only, found 'al' (did you mean all?)."),
        ("lora.lora_dropout=1.5", "lora.lora_dropout is a finite number at least 0 and below 1, found 1.5."),
        ("stages=[trian]", "found 'trian' (did you mean train?)."),
        ("+trainer.extra.output_dir=x", "trainer.extra.output_dir belongs to run_dir."),
        ("+trainer.extra.adam_beta=0.9", "trainer.extra.adam_beta is not an option of the installed library"),
        ("+trainer.extra.packing=true", "trainer.extra.packing belongs to data.packing."),
        ("lora.init_lora_weights=olora", "changes the base weights too"),
        ("generate.temperature=0.7", "generate.temperature=0.7 has no effect with generate.do_sample=false."),
        ("tracking.project=mine", "tracking.project=mine has no effect with tracking=off."),
        ("quantization.bnb_4bit_compute_dtype=float32", "has no effect with quantization=none."),
        ("data.split=test", "data.split=test is for a folder or a dataset, and"),
        ("model.revision=main", "model.revision=main is for models on the hub"),
        ("trainer.lr_scheduler_type=cosin", "trl refuses the trainer group: cosin is not a valid SchedulerType"),
        ("trainer.optim=paged_adamw_32bit", "set trainer.optim=adamw_torch."),
        ("trainer.precision=float16", "set trainer.precision=float32."),
        ("data.path=missing.jsonl", "data.path=missing.jsonl: there is no such file."),
        ("+data.columns.messages=turns", "row 1: no column 'turns', found messages; set +data.columns.messages=NAME."),
        ("lora.target_modules=[q_prj]", "which matches no module of the model: the model has down_proj,"),
        ("model.chat_template=nope", "is neither a file nor one of ours: tinyllama_chat."),
        ("model.name_or_path=./nowhere", "there is no such folder."),
    ],
)
def test_mistakes(override: str, sentence: str, tiny: Path, rows: Path, refused: Callable[..., str]) -> None:
    assert sentence in refused(*arguments(tiny, rows, override))


def test_an_adapters_rank_without_an_adapter(tiny: Path, rows: Path, refused: Callable[..., str]) -> None:
    assert "lora.r=8 has no effect with lora=none." in refused(*arguments(tiny, rows, "lora=none", "lora.r=8"))


def test_a_tokenizer_without_a_chat_template(
    tiny: Path, rows: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    bare = shutil.copytree(tiny, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    assert "has no chat template: set model.chat_template=FILE.jinja." in refused(*arguments(bare, rows))


def test_an_unknown_task(tiny: Path, rows: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused(*arguments(tiny, rows, "benchmark=demo", "benchmark.tasks=[demo_categry]"))
    assert "which lm-eval does not know (did you mean demo_category?)." in said


def test_several_mistakes_are_all_listed(tiny: Path, rows: Path, refused: Callable[..., str]) -> None:
    said = refused(
        *arguments(tiny, rows, "data.path=gone.jsonl", "lora.target_modules=[q_prj]", "trainer.optim=paged_lion_8bit")
    )
    assert "gone.jsonl" in said and "q_prj" in said and "paged_lion_8bit" in said


def test_a_stage_without_its_input(tiny: Path, rows: Path, refused: Callable[..., str]) -> None:
    assert "train needs prepare: set stages=[prepare,train]." in refused(*arguments(tiny, rows, "stages=[train]"))
    assert "generate needs prepare and train and merge: set stages=[prepare,train,merge,generate]." in refused(
        *arguments(tiny, rows, "stages=[generate]", "generate.prompts=[hello]")
    )


def test_a_typed_stage_with_nothing_to_do(tiny: Path, rows: Path, refused: Callable[..., str]) -> None:
    said = refused(*arguments(tiny, rows, "stages=[prepare,train,evaluate]"))
    assert "stage evaluate was asked for, but has nothing to do: benchmark=none" in said


@pytest.mark.slow
def test_a_run_opened_again_keeps_its_settings(
    tiny: Path, rows: Path, hydratune: Command, refused: Callable[..., str], tmp_path: Path
) -> None:
    first = hydratune(*arguments(tiny, rows, "stages=[prepare,train,merge]", "lora.r=8"))
    assert first.returncode == 0, first.stderr
    said = refused("run_dir=run", "lora.r=4", "stages=[train]")
    assert "lora.r is 8 in run/config.yaml and 4 here" in said
    again = hydratune("run_dir=run", "benchmark=demo", "benchmark.limit=3", "stages=[train,evaluate]")
    assert again.returncode == 0, again.stderr
    assert "train     done: already finished, skipped" in again.stdout
    assert [row["n"] for row in json.loads((tmp_path / "run/benchmark/comparison.json").read_text())] == [3, 3, 3]
    more = hydratune("run_dir=run", "benchmark.limit=4", "stages=[evaluate]")  # the tasks stay those of the run
    assert more.returncode == 0, more.stderr
    assert [row["n"] for row in json.loads((tmp_path / "run/benchmark/comparison.json").read_text())] == [4, 4, 4]
    receipt = json.loads((tmp_path / "run/receipts/evaluate.json").read_text())
    assert receipt["hardware"]["device"] == "cpu" and receipt["inputs"].keys() == {"merge", "train"}
    assert "benchmark/merged.json" in receipt["outputs"]


def held(folder: Path, tiny: Path, rows: Path, *more: str) -> list[str]:
    """A training that the environment may hold back."""
    (folder / "mine.py").write_text(CALLBACK)
    return arguments(tiny, rows, "trainer.callbacks=[mine:Mine]", "stages=[prepare,train]", *more)


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(
    tiny: Path, rows: Path, hydratune: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    typed = held(tmp_path, tiny, rows, "trainer.max_steps=40", "trainer.lr_scheduler_type=constant")
    process = subprocess.Popen(
        [sys.executable, "-m", "hydratune", *typed],
        cwd=tmp_path, env=environment | {"EACH": "held 5"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "run" / "train_log.jsonl"
    until(log.is_file)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 75, said
    saved = int(said.split("saved at step ")[1].split(";")[0])
    assert not (tmp_path / "run" / "adapter").exists()
    done = hydratune(*typed)
    assert done.returncode == 0, done.stderr
    assert f"going on from checkpoint-{saved}" in done.stdout
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 41))


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_stands_in_the_way(
    tiny: Path, rows: Path, hydratune: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    typed = held(tmp_path, tiny, rows, "trainer.max_steps=60", "trainer.save_steps=10")
    process = subprocess.Popen(
        [sys.executable, "-m", "hydratune", *typed], cwd=tmp_path, env=environment | {"EACH": "held 30"}
    )
    checkpoints, log = tmp_path / "run" / "checkpoints", tmp_path / "run" / "train_log.jsonl"
    until((checkpoints / "checkpoint-20").is_dir)
    process.kill()
    process.wait()
    # the worst moment: a checkpoint half written, and a line of the log cut off
    (checkpoints / "checkpoint-50").mkdir()
    (checkpoints / "checkpoint-50" / "optimizer.pt").write_bytes(b"half")
    with log.open("a") as file:
        file.write('{"step": 2')
    done = hydratune(*typed)
    assert done.returncode == 0, done.stderr
    assert "checkpoint-50 was cut off while it was written: removed" in done.stdout
    assert "going on from checkpoint-" in done.stdout
    killed = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["step"] for entry in killed] == list(range(1, 61))
    undisturbed = hydratune(*arguments(tiny, rows, *typed[7:], "run_dir=whole"))
    assert undisturbed.returncode == 0, undisturbed.stderr
    whole = [json.loads(line) for line in (tmp_path / "whole" / "train_log.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in killed] == [entry["loss"] for entry in whole]
    adapters = [load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("run", "whole")]
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())


@pytest.mark.slow
def test_a_signal_outside_training_stops_too(
    tiny: Path, rows: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "hydratune", *arguments(tiny, rows)],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("prepare"):
            break
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 75, said
    assert "the same command goes on" in said
