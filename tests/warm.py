"""The command in processes forked from one that has the libraries imported, which spares each call the imports.

This file is that process, too, run as a program: for each JSON line on stdin it forks a command, or waits for one.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

PATIENCE = 600.0  # seconds; far above what anything takes on a busy machine


def nursery() -> None:
    from hydratune.build.libraries import import_libraries
    from hydratune.sweep import here, jobs, processes, runner  # noqa: F401

    processes.import_in_one_thread(lambda: import_libraries(training=True, tracker=False, evaluation=False))
    for line in sys.stdin:
        wanted = json.loads(line)
        if pid := wanted.get("wait"):
            found, status = os.waitpid(pid, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        else:
            answer = os.fork()
            if not answer:
                _child(**wanted)
        print(json.dumps(answer), flush=True)


def _child(
    arguments: list[str], folder: str, environment: dict[str, str], typed: str, out: str, err: str, limit: int
) -> None:
    from hydratune.main import main
    from hydratune.sweep.processes import _end_with

    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((0, typed or os.devnull), (1, out), (2, err)):
        os.dup2(os.open(name, os.O_RDONLY if not number else os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = os.fdopen(0)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["hydratune", *arguments]
    _end_with(main)


@dataclass
class Started:
    """A command at work, or done."""

    pid: int
    out: Path
    err: Path
    ask: Callable[[dict[str, Any]], Any]
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.ask({"wait": self.pid})
        return self.returncode

    def wait(self) -> int:
        until(lambda: self.poll() is not None, lambda: f"{self.pid} goes on and on:\n{self.said}")
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()

    @property
    def said(self) -> str:
        return self.stdout + self.stderr


class Warm:
    """`start` and `call` are subprocess's Popen and run, of `hydratune` with these words in `folder`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment, self.count = folder, environment, 0
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, wanted: dict[str, Any]) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *words: str, folder: Path, typed: str = "", limit: int = 0, **environment: str) -> Started:
        """`typed`: a file for standard input; `limit`: bytes that a file may have, as if the disk were full from there on."""
        self.count += 1
        out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        for path in (out, err):
            path.touch()  # the command may be slow to come to it
        wanted = {
            "arguments": words, "folder": str(folder), "environment": self.environment | environment, "typed": typed,
            "out": str(out), "err": str(err), "limit": limit,
        }  # fmt: skip
        return Started(self.ask(wanted), out, err, self.ask)

    def call(self, *words: str, folder: Path, **more: Any) -> Started:
        started = self.start(*words, folder=folder, **more)
        started.wait()
        return started

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@cache
def shared_warm() -> Warm:
    """The one of this test process; it ends when this process does, and its standard input with it."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return Warm(Path(mkdtemp(prefix="said-")), environment)


def run_warm(
    arguments: Sequence[str], folder: Path, environment: dict[str, str], typed: str = ""
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` gives of the command in `folder`, with `typed` on its standard input."""
    warm = shared_warm()
    file = warm.folder / "typed"
    file.write_text(typed)
    done = warm.call(*arguments, folder=folder, typed=str(file), **environment)
    return subprocess.CompletedProcess(["hydratune", *arguments], done.wait(), done.stdout, done.stderr)


def until(holds: Callable[[], object], otherwise: Callable[[], str] = lambda: "") -> None:
    """Returns as soon as it holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.005)


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines that may be absent, and whose last line may be being written."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def children(pid: int) -> list[int]:
    """Processes that `pid` has started, and those that they have."""
    try:
        mine = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # a short one, such as git, that has ended meanwhile
        return []
    return [*mine, *(one for child in mine for one in children(child))]


def kill_all(pid: int) -> None:
    """`pid` and what it has started, at once."""
    os.kill(pid, signal.SIGSTOP)  # so that it starts nothing meanwhile
    for one in [*children(pid), pid]:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


CALLBACK = '''
"""What a job does is told by the environment, so that a command that is typed again may do something else.

"held 3": an attempt waits in the step after its third, until training has noted a signal or there is a file "go";
"hung 3": whatever the signal. 10 minutes at most, so that a test that fails leaves nothing behind.
"""
import json, os, signal, sys, time
from pathlib import Path
import torch
from transformers import TrainerCallback


class Mine(TrainerCallback):
    def on_train_begin(self, args, state, control, **more):
        opened = []
        for number in os.listdir("/proc/self/fd"):
            try:
                opened.append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                pass
        seen = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "files": opened, "pid": os.getpid()}
        Path(f"seen-{args.seed}.json").write_text(json.dumps(seen))
        self.first, self.latest = state.global_step, time.monotonic() + 600

    def on_step_begin(self, args, state, control, model=None, **more):
        what = os.environ.get(f"SEED_{args.seed}", os.environ.get("EACH", ""))
        if what == "slow":
            time.sleep(0.25)
        elif what[:5] in ("held ", "hung ") and state.global_step - self.first >= int(what[5:]):
            training = signal.getsignal(signal.SIGTERM).__self__  # the Progress, there before the first step
            while not Path("go").exists() and time.monotonic() < self.latest:
                if training.signal and what[:4] == "held":
                    break
                time.sleep(0.02)
        elif what == "memory":
            torch.empty(2**50)
        elif what == "gpu memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        elif what == "nan":
            for parameter in model.parameters():
                parameter.data.fill_(float("nan"))
        elif what == "mistake":
            raise ValueError("a mistake of mine")
        elif what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
'''


@dataclass
class Place:
    """A folder where sweeps are started, and what they leave there."""

    folder: Path
    warm: Warm
    words: list[str]  # of each sweep

    def start(self, *words: str, **more: Any) -> Started:
        cache = {"HYDRATUNE_CACHE": str(self.folder / "cache")}
        return self.warm.start(*self.words, *words, folder=self.folder, **(cache | more))

    def call(self, *words: str, **more: Any) -> Started:
        started = self.start(*words, **more)
        started.wait()
        return started

    def sweep(self, *words: str, **more: Any) -> Started:
        """`hydratune sweep`, to its end."""
        return self.warm.call("sweep", *words, folder=self.folder, **more)

    def record(self, number: int, sweep: str = "sweep") -> dict[str, Any]:
        """Empty where the job has not begun."""
        path = self.folder / sweep / str(number) / "job.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def states(self, count: int, sweep: str = "sweep") -> list[str]:
        return [self.record(number, sweep).get("state", "waiting") for number in range(count)]

    def steps(self, number: int, sweep: str = "sweep") -> list[int]:
        """Those that the job has logged a loss of."""
        lines = whole_lines(self.folder / sweep / str(number) / "train_log.jsonl")
        return [line["step"] for line in lines if "loss" in line]

    def lives(self, number: int) -> bool:
        """Whether the process of the job's last attempt is there, and not another that has its number by now."""
        return Path(f"/proc/{self.record(number)['pid']}/cwd").resolve() == self.folder.resolve()

    def adapter(self, run: str) -> bytes:
        return (self.folder / run / "adapter/adapter_model.safetensors").read_bytes()


def place_in(folder: Path, warm: Warm, tiny: Path, rows: str) -> Place:
    (folder / "rows.jsonl").write_text(rows)
    (folder / "mine.py").write_text(CALLBACK)
    words = [
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", "data.path=rows.jsonl", "quantization=none",
        "trainer.callbacks=[mine:Mine]", "trainer.logging_steps=1", "trainer.max_steps=2", "stages=[prepare,train]",
    ]  # fmt: skip
    return Place(folder, warm, words)


if __name__ == "__main__":
    nursery()
