"""What is said of a step, over which time, and the second Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hydratune.build import progress
from hydratune.build.checkpoint_folder import last_checkpoint
from hydratune.build.progress import Progress
from hydratune.run.train_log import append_log, cut_log


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Told:
    """A Progress, and what it said."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.cut: list[int] = []
        self.shown: list[str] = []
        self.progress = Progress(
            self.log.append, self.cut.append, lambda done, total, text: self.shown.append(text), lambda text: None
        )
        self.progress.counts = lambda: (50, 20)
        self.state = SimpleNamespace(global_step=0, max_steps=10, is_world_process_zero=True)

    def step(self) -> None:
        self.state.global_step += 1
        self.progress.on_step_end(None, self.state, None)

    def logged(self) -> dict[str, Any]:
        logs = {"loss": 2.0, "learning_rate": 1e-4, "grad_norm": 0.5}
        self.progress.on_log(None, self.state, None, logs)
        return self.log[-1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_pace_is_that_of_the_window(clock: Clock) -> None:
    told = Told()
    told.progress.on_train_begin(None, told.state, None)
    for _ in range(2):
        clock.now += 5
        told.step()
    with told.progress.aside():
        clock.now += 1000
    entry = told.logged()
    assert (entry["tokens_per_second"], entry["supervised_tokens_per_second"]) == (10.0, 4.0)
    assert entry["seconds"] == 1010 and entry["memory_gib"] > 0.1 and entry["step"] == 2
    assert told.shown[-1].startswith("loss 2.0000  lr 1.00e-04  gradient 0.5  10 tokens/s, 4 supervised  ")
    assert told.shown[-1].endswith("0:00:40 left")  # 8 steps of 5 seconds
    clock.now += 2
    told.step()
    assert told.logged()["tokens_per_second"] == 25.0


def test_a_window_that_a_stop_has_cut(clock: Clock) -> None:
    """The next attempt counts on: the tokens and seconds of both, and none of the time between."""
    told = Told()
    told.progress.on_train_begin(None, told.state, None)
    clock.now += 5
    told.step()
    told.logged()
    clock.now += 4
    told.step()
    kept = told.progress.state()
    clock.now += 777
    again = Told()
    again.state.global_step = 2
    again.progress.begin = lambda: again.progress.restore(kept)
    again.progress.on_train_begin(None, again.state, None)
    assert again.cut == [2]
    clock.now += 6
    again.step()
    entry = again.logged()
    assert entry["tokens_per_second"] == 10.0 and entry["seconds"] == 15


def test_only_the_first_process_tells(clock: Clock) -> None:
    told = Told()
    told.state.is_world_process_zero = False
    told.progress.all_processes = lambda values: [2 * value for value in values]
    told.progress.on_train_begin(None, told.state, None)
    told.step()
    told.progress.on_log(None, told.state, None, {"loss": 1.0, "learning_rate": 0.1})
    assert told.log == told.cut == told.shown == []
    told.state.is_world_process_zero = True
    clock.now += 10
    told.step()
    assert told.logged()["tokens_per_second"] == 10.0  # of two processes


def test_the_log_holds_each_step_once(tmp_path: Path) -> None:
    log = tmp_path / "train_log.jsonl"
    cut_log(log, 0)
    for step in (1, 2, 3):
        append_log(log, {"step": step})
    with log.open("ab") as file:
        file.write(b'{"step": 4, "lo\xff')  # a kill
    cut_log(log, 2)
    append_log(log, {"step": 3})
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    for _ in range(2):  # the last validation is made again where a kill came after it, with no checkpoint between
        append_log(log, {"step": 3, "eval_loss": 2.0})
        cut_log(log, 3)
    assert log.read_text().endswith('{"step": 2}\n{"step": 3}\n{"step": 3, "eval_loss": 2.0}\n')


AT_THE_SECOND = """
import os, signal, sys
from pathlib import Path
import torch
from hydratune.main import main
save, optimizers = torch.save, []
def slow(value, path, *args, **kwargs):
    if Path(path).name == "optimizer.pt":
        optimizers.append(path)
        if len(optimizers) == 2:
            Path(path).write_bytes(b"half")
            try:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                pass
            raise AssertionError("still here")
    save(value, path, *args, **kwargs)
torch.save = slow
main()
"""


@pytest.mark.slow
def test_the_second_ctrl_c_leaves_in_the_middle_of_a_checkpoint(
    tiny: Path, rows: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
        "trainer.max_steps=9", "trainer.save_steps=2", "stages=[prepare,train]", "run_dir=run",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_SECOND, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 130, done.stdout + done.stderr
    assert "stops after this step, with its state saved; Ctrl-C again leaves at once" in done.stdout
    assert "Traceback" not in done.stderr
    folder = tmp_path / "run/checkpoints"
    assert (folder / ".writing/checkpoint-4/optimizer.pt").read_bytes() == b"half"
    assert not (folder / "checkpoint-4").exists()
    assert last_checkpoint(folder, print) == folder / "checkpoint-2"
    assert os.listdir(folder) == ["checkpoint-2"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_each_signal_is_kept_until_the_step_is_done(number: int) -> None:
    told = Told()
    told.progress.handle(number, None)
    told.progress.handle(signal.SIGTERM, None)  # a scheduler may send it again: no reason to leave at once
    assert told.progress.signal == signal.SIGTERM


def test_only_the_second_ctrl_c_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first after another signal is a first one, and one between the two changes nothing."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    told = Told()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        told.progress.handle(number, None)
    assert not left
    told.progress.handle(signal.SIGINT, None)
    assert left == [130]
