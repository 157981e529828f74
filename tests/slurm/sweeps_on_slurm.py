"""For the tests of sweeps on a real Slurm: a cluster, and hydratune called as a person on its login node would."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from conftest import ROWS

from hydratune.run.job import read_record

PATIENCE = 600.0  # seconds, which a machine that is busy may need
HERE = Path(__file__).parent
LOCAL_SLURM = HERE.parents[1] / "launchers" / "local_slurm.sh"


def wait_until(what: str | Callable[[], str], holds: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `holds` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.1)
    return found


def saved_at(said: str) -> list[int]:
    """The steps where a run says that it has saved its state at a signal."""
    return [int(step) for step in re.findall(r"saved at step (\d+)", said)]


def went_on(said: str) -> bool:
    """From each step where it saved its state."""
    return all(f"going on from checkpoint-{step}" in said for step in saved_at(said))


def figure(name: str, value: float, unit: str = "s") -> None:
    """A line of the table that `make bench-slurm` prints."""
    print(f"\nfigure: {name:60} {value:6.1f} {unit}")


class Cluster:
    """Two nodes, and a folder to submit from."""

    def __init__(self, folder: Path, conf: str, tiny: Path, rows: Path) -> None:
        self.folder, self.conf = folder, Path(conf)
        self.env = {
            **os.environ, "SLURM_CONF": conf, "HYDRATUNE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": f"{folder}:{HERE}:{os.environ.get('PYTHONPATH', '')}",
        }  # fmt: skip
        self.run = [
            "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
            "trainer.lr_scheduler_type=constant", "stages=[prepare,train]",
        ]  # fmt: skip
        self.slurm = ["-m", "hydra/launcher=slurm_1gpu", "hydra.launcher.sbatch.cpus_per_task=1", *self.run]

    def call(self, *command: str) -> str:
        """One of Slurm's commands."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def queue(self) -> dict[str, str]:
        """Task -> state of all that is in the queue."""
        lines = self.call("squeue", "--noheader", "--array", "--format=%F_%K %T").splitlines()
        return dict(line.split() for line in lines)

    def tasks(self) -> list[str]:
        """Those in the queue, in the order of their numbers."""
        return sorted(self.queue(), key=lambda name: [*map(int, name.split("_"))])

    def wait_for_the_end(self) -> None:
        """Of all jobs: one that is done by its record, Slurm may still have for some seconds."""
        wait_until(lambda: f"left: {self.queue()}", lambda: not self.queue())

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "hydratune", *words]

    def hydratune(self, *words: str, status: int = 0) -> str:
        """What the command says; in this process, which spares each call the imports."""
        from hydratune.main import main

        with (
            tempfile.TemporaryFile("w+") as said, _as_screen(said.fileno()), redirect_stdout(said),
            redirect_stderr(said), patch.dict(os.environ, self.env), patch.object(sys, "argv", ["hydratune", *words]),
        ):  # fmt: skip
            before, code = Path.cwd(), 0
            os.chdir(self.folder)
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                os.chdir(before)
            said.flush()
            said.seek(0)
            text = said.read()
        assert code == status and "Traceback" not in text, text
        return text

    def configure(self, **settings: str | int) -> None:
        """Other values in slurm.conf, which jobs read meanwhile."""
        lines = [line for line in self.conf.read_text().splitlines() if line.partition("=")[0] not in settings]
        new = self.conf.with_suffix(".new")
        new.write_text("\n".join([*(f"{key}={value}" for key, value in settings.items()), *lines, ""]))
        new.replace(self.conf)
        self.call("scontrol", "reconfigure")


class Sweep:
    """A sweep in the cluster's folder."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.root = cluster, cluster.folder / name

    def record(self, number: int) -> Any:
        return read_record(self.root / str(number))

    def state(self, number: int) -> str:
        return self.record(number).state if self.record(number) else "waiting"

    def screen(self, number: int) -> str:
        path = self.root / str(number) / "screen.log"
        return path.read_text() if path.is_file() else ""

    def steps(self, number: int) -> list[int]:
        path = self.log(number)
        text = path.read_text() if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # of the line that is being added a part may be there
        return [json.loads(line)["step"] for line in whole.splitlines()]

    def log(self, number: int) -> Path:
        return self.root / str(number) / "train_log.jsonl"

    def trains(self, number: int, after: int = 0) -> bool:
        """Whether a step is done in this attempt, later than the attempt `after`."""
        record = self.record(number)
        if not record or record.state != "running" or record.attempt <= after:
            return False
        went_on = re.findall(r"going on from checkpoint-(\d+)", self.screen(number).rpartition("\nSlurm: job ")[2])
        # as it goes on it writes its log anew, up to the checkpoint
        anew = self.log(number).is_file() and self.log(number).stat().st_mtime > record.started
        return anew and max(self.steps(number), default=0) > int((went_on or ["0"])[-1])

    def adapter(self, number: int) -> bytes:
        return (self.root / str(number) / "adapter" / "adapter_model.safetensors").read_bytes()

    def wait_for(self, state: str, *numbers: int) -> None:
        wait_until(
            lambda: f"{state} of {numbers}:\n{self.cluster.hydratune('sweep', 'status', str(self.root))}",
            lambda: all(self.state(number) == state for number in numbers),
        )

    def wait_for_steps(self, number: int, more_than: int = 0) -> None:
        wait_until(f"steps of job {number}", lambda: max(self.steps(number), default=0) > more_than)


@contextmanager
def _as_screen(file: int) -> Iterator[None]:
    before = os.dup(1)
    os.dup2(file, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


def port(another: int = 0) -> str:
    """For local_slurm.sh: each of several test processes has its own."""
    return str(17000 + 3 * ((os.getpid() + another) % 5000))


def of_its_own(lines: str = "") -> dict[str, str]:
    """For local_slurm.sh: Slurm's ports, and the jobs' numbers, of which they make ports; `lines` of slurm.conf too."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return {"PORT": port(), "EXTRA": f"{lines}\nFirstJobId={1 + 300 * worker}"}


@contextmanager
def running_slurm(folder: Path) -> Iterator[str]:
    """SLURM_CONF of a cluster that is started and stopped."""
    try:
        subprocess.run([LOCAL_SLURM, "start", folder], env={**os.environ, **of_its_own()}, check=True, timeout=240)
        yield str(folder / "slurm.conf")
    finally:
        subprocess.run([LOCAL_SLURM, "stop", folder], check=True, timeout=120)


@contextmanager
def site(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Cluster]:
    """A Slurm of its own, with a folder to submit from and rows to train on."""
    folder = tmp_path_factory.mktemp("site")
    rows = folder / "rows.jsonl"
    rows.write_text(ROWS)
    with running_slurm(tmp_path_factory.mktemp("slurm")) as conf:
        yield Cluster(folder, conf, tiny, rows)
