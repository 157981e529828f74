"""What a user meets at the command line: mistakes, and a run that is opened again or stopped."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


def arguments(tiny: Path, rows: Path, *more: str) -> list[str]:
    return [
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
        "run_dir=run", "trainer.max_steps=4", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("lora.rnak=3", "There is no key lora.rnak (did you mean lora.r?)."),
        ("+lora.rnak=3", "There is no key lora.rnak (did you mean lora.r?)."),
        ("lora.bias=al", "lora.bias is one of none, all, lora_only, found 'al' (did you mean all?)."),
        ("lora.lora_dropout=1.5", "lora.lora_dropout is a probability, at least 0 and below 1, found 1.5."),
        ("stages=[trian]", "found 'trian' (did you mean train?)."),
        ("+trainer.extra.output_dir=x", "trainer.extra.output_dir belongs to run_dir: set it there."),
        ("+trainer.extra.adam_beta=0.9", "trainer.extra.adam_beta is not an option of the installed library"),
        ("trainer.optim=paged_adamw_32bit", "set trainer.optim=adamw_torch."),
        ("trainer.precision=float16", "set trainer.precision=float32."),
        ("data.path=missing.jsonl", "data.path=missing.jsonl: there is no such file."),
        ("data.column=turns", "row 1: no column 'turns', found messages; set data.column."),
        ("lora.target_modules=[q_prj]", "which matches no module of the model: it has down_proj,"),
        ("model.chat_template=nope", "is neither a file nor one of ours: tinyllama_chat."),
        ("model.name_or_path=./nowhere", "there is no such folder."),
    ],
)
def test_mistakes(override: str, sentence: str, tiny: Path, rows: Path, hydratune: Command, tmp_path: Path) -> None:
    done = hydratune(*arguments(tiny, rows, override))
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_several_mistakes_are_all_listed(tiny: Path, rows: Path, hydratune: Command) -> None:
    done = hydratune(*arguments(tiny, rows, "data.path=gone.jsonl", "lora.target_modules=[q_prj]", "lora.r=2"))
    assert done.returncode == 2
    assert "gone.jsonl" in done.stderr and "q_prj" in done.stderr


@pytest.mark.slow
def test_a_run_opened_again_keeps_its_settings(tiny: Path, rows: Path, hydratune: Command) -> None:
    first = hydratune(*arguments(tiny, rows, "stages=[prepare,train]"))
    assert first.returncode == 0, first.stderr
    other = hydratune("run_dir=run", "lora.r=4", "stages=[train]")
    assert other.returncode == 2
    assert "lora.r is 16 in run/config.yaml and 4 here" in other.stderr
    again = hydratune("run_dir=run", "stages=[train]")
    assert again.returncode == 0, again.stderr
    assert "already finished, skipped" in again.stdout


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(
    tiny: Path, rows: Path, hydratune: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    typed = arguments(
        tiny, rows, "trainer.max_steps=400", "trainer.lr_scheduler_type=constant", "stages=[prepare,train]"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "hydratune", *typed], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "train_log.jsonl"
    deadline = time.monotonic() + 120
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    saved = int(said.split("saved at step ")[1].split(";")[0])
    assert not (tmp_path / "run" / "adapter").exists()
    done = hydratune(*typed)
    assert done.returncode == 0, done.stderr
    assert f"going on from checkpoint-{saved}" in done.stdout
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 401))
