"""Training that is killed again and again ends as one that never was: bit by bit, with each step logged once.

Most attempts are forked from a process that has its imports behind it (this file, run as a program); the others are
processes of their own (this file, too). Each kills itself, so that none gets further than it should on a busy machine.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

KILLS, COLD, STEPS, SAVE_STEPS = 25, 3, 110, 3
FAULTS = ("torch.save", "seal", "before rename", "after rename", "rotation")  # where a checkpoint's writing is cut
STEP, LATER = "steps.txt", 0.04  # seconds; about as long as a step takes


def nursery() -> None:
    """For each JSON line on stdin a forked process that runs the command; its exit status goes to stdout."""
    import hydratune.stages.prepare
    import hydratune.stages.train  # noqa: F401
    from hydratune import preflight, sweep  # noqa: F401

    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if not pid:
            _child(**wanted)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _child(arguments: list[str], folder: str, kill_at: int, later: float, fault: str | None) -> None:
    """One attempt, killed `later` seconds after its step number `kill_at` (0: never), or by `fault` after that."""
    from hydratune.build import progress
    from hydratune.main import main

    os.chdir(folder)
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    done, before = [0], progress.Progress.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        before(self, args, state, control, **others)
        with Path(STEP).open("a") as file:
            file.write(f"{state.global_step}\n")
        done[0] += 1
        if done[0] == kill_at and fault:
            _plant(fault)
        elif done[0] == kill_at:
            threading.Timer(later, _die).start()

    progress.Progress.on_step_end = on_step_end  # type: ignore[method-assign]
    sys.argv = ["hydratune", *arguments]
    status = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        os._exit(status)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _plant(fault: str) -> None:
    """The next checkpoint is not written to its end."""
    import shutil

    import torch

    from hydratune.build import checkpoint_folder

    save, rename, rmtree = torch.save, Path.rename, shutil.rmtree

    def half_saved(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        save(value, path, *args, **kwargs)
        os.truncate(path, Path(path).stat().st_size // 2)
        _die()

    def half_sealed(folder: Path, told: dict[str, Any], name: str) -> None:
        (folder / name).write_text(json.dumps(told)[:-1])
        _die()

    def renamed(self: Path, target: Path) -> Path:
        if fault == "after rename":
            rename(self, target)
        _die()
        return target

    def half_removed(path: Path, *args: Any, **kwargs: Any) -> None:
        for gone in path.glob("checkpoint-*/optimizer.pt"):
            gone.unlink()
            _die()
        rmtree(path, *args, **kwargs)

    if fault == "torch.save":
        torch.save = half_saved
    elif fault == "seal":
        checkpoint_folder.seal = half_sealed  # type: ignore[assignment]
    elif fault == "rotation":
        shutil.rmtree = half_removed  # type: ignore[assignment]
    else:
        Path.rename = renamed  # type: ignore[method-assign]


class Attempts:
    """The same command again and again, in one folder."""

    def __init__(self, folder: Path, environment: dict[str, str], command: list[str]) -> None:
        self.folder, self.environment, self.command = folder, environment, command
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def again(
        self, run: str, kill_at: int = 0, later: float = 0.0, fault: str | None = None, cold: bool = False
    ) -> int:
        """Exit status of an attempt, below 0 that of a signal; a `cold` one imports what it needs."""
        told = {
            "arguments": [*self.command, f"run_dir={run}"], "folder": str(self.folder), "kill_at": kill_at,
            "later": later, "fault": fault,
        }  # fmt: skip
        wanted = json.dumps(told)
        if cold:
            return subprocess.run([sys.executable, __file__, wanted], env=self.environment).returncode
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(wanted + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def said(self) -> str:
        return (self.folder / "out.txt").read_text()

    def resumed(self) -> int:
        """The step that the last attempt went on from."""
        said = self.said()
        return int(said.split("going on from checkpoint-")[1].split()[0]) if "going on from" in said else 0

    def log(self, run: str) -> list[dict[str, Any]]:
        path = self.folder / run / "train_log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


TIMES = {"tokens_per_second", "supervised_tokens_per_second", "memory_gib", "seconds"}


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(
    tiny: Path, rows: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
        "lora=all_linear", "lora.lora_dropout=0.1", "data.shuffle_seed=5", "data.max_rows=21",
        "data.validation_share=0.1", "trainer.eval_steps=10", "trainer.per_device_train_batch_size=2",
        "trainer.gradient_accumulation_steps=2", "trainer.logging_steps=2", f"trainer.save_steps={SAVE_STEPS}",
        f"trainer.max_steps={STEPS}", "stages=[prepare,train]",
    ]  # fmt: skip
    dice, attempts = random.Random(0), Attempts(tmp_path, environment, command)
    assert attempts.again("whole") == 0, (tmp_path / "err.txt").read_text()
    kinds = [*FAULTS, *["cold"] * COLD, *["warm"] * (KILLS - len(FAULTS) - COLD)]
    dice.shuffle(kinds)
    kinds.sort(key=lambda kind: kind == "rotation")  # there must be one to delete
    (tmp_path / STEP).unlink()
    resumed, steps_before = [], 0
    for kind in kinds:
        fault = kind if kind in FAULTS else None
        status = attempts.again("killed", dice.randint(1, 7), dice.random() * LATER, fault, cold=kind == "cold")
        assert status == -signal.SIGKILL, attempts.said() + (tmp_path / "err.txt").read_text()
        steps = [int(line) for line in (tmp_path / STEP).read_text().split()]
        last, steps_before = steps[steps_before - 1] if steps_before else 0, len(steps)
        assert last - attempts.resumed() <= SAVE_STEPS
        resumed.append(attempts.resumed())
    assert attempts.again("killed") == 0, (tmp_path / "err.txt").read_text()
    assert attempts.resumed() < STEPS and sum(step > 0 for step in resumed) >= 20
    attempts.process.kill()

    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    whole, killed = (
        [{k: v for k, v in entry.items() if k not in TIMES} for entry in attempts.log(run)]
        for run in ("whole", "killed")
    )
    assert killed == whole
    assert [entry["step"] for entry in killed if "loss" in entry] == list(range(2, STEPS + 1, 2))
    assert not list((tmp_path / "killed/checkpoints").glob(".*"))


if __name__ == "__main__":
    if sys.argv[1:]:
        _child(**json.loads(sys.argv[1]))
    nursery()
