"""launchers/train.sbatch on a real Slurm: it finishes, fails, goes on after a signal, and stays cancelled."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm
HERE = Path(__file__).parent
LAUNCHER = HERE.parents[1] / "launchers" / "train.sbatch"
PATIENCE = 300  # seconds


class Cluster:
    """Two nodes, and a folder to submit from."""

    def __init__(self, folder: Path, conf: str, tiny: Path) -> None:
        self.folder = folder
        self.env = {
            **os.environ, "SLURM_CONF": conf, "HYDRATUNE": str(Path(sys.executable).with_name("hydratune")),
            "HYDRATUNE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.run = [
            "model=local", f"model.name_or_path={tiny}", "data=jsonl", "data.path=rows.jsonl", "quantization=none",
            "run_dir=run", "trainer.lr_scheduler_type=constant", "stages=[prepare,train]",
        ]  # fmt: skip

    def call(self, *command: str) -> str:
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    def submit(self, *arguments: str) -> str:
        return self.call("sbatch", "--parsable", "--cpus-per-task=1", str(LAUNCHER), *self.run, *arguments)

    def state(self, job: str) -> dict[str, str]:
        said = shlex.split(self.call("scontrol", "show", "job", "-o", job))
        return dict(word.split("=", 1) for word in said if "=" in word)

    def wait_for(self, job: str, *states: str) -> dict[str, str]:
        deadline = time.monotonic() + PATIENCE
        while (found := self.state(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{found}\n{self.output(job)}"
            time.sleep(0.5)
        return found

    def wait_for_training(self, job: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (self.folder / "run" / "train_log.jsonl").is_file():
            assert time.monotonic() < deadline, self.output(job)
            time.sleep(0.1)

    def output(self, job: str) -> str:
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.is_file() else ""

    def steps(self) -> list[int]:
        return [json.loads(line)["step"] for line in (self.folder / "run" / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SLURM_CONF of a cluster that this module starts and stops."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([HERE / "local_slurm.sh", "start", folder], check=True, timeout=120)
    yield str(folder / "slurm.conf")
    subprocess.run([HERE / "local_slurm.sh", "stop", folder], check=True, timeout=120)


@pytest.fixture
def cluster(tmp_path: Path, slurm: str, tiny: Path, rows: Path) -> Cluster:
    return Cluster(tmp_path, slurm, tiny)


def test_a_job_trains(cluster: Cluster) -> None:
    job = cluster.submit("trainer.max_steps=4")
    assert cluster.wait_for(job, "COMPLETED", "FAILED")["ExitCode"] == "0:0", cluster.output(job)
    assert (cluster.folder / "run" / "adapter" / "adapter_config.json").is_file()
    assert cluster.steps() == [1, 2, 3, 4]


def test_a_mistake_fails_the_job_with_its_sentence(cluster: Cluster) -> None:
    job = cluster.submit("lora.rnak=3")
    assert cluster.wait_for(job, "COMPLETED", "FAILED")["ExitCode"] == "2:0"
    assert "There is no key lora.rnak (did you mean lora.r?)." in cluster.output(job)


def test_a_signal_requeues_and_the_job_goes_on(cluster: Cluster) -> None:
    job = cluster.submit("trainer.max_steps=400")
    cluster.wait_for_training(job)
    cluster.call("scancel", "--signal=USR1", job)
    ended = cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), cluster.output(job)
    assert "going on from checkpoint-" in cluster.output(job)
    assert cluster.steps() == list(range(1, 401))


def test_a_preempted_job_goes_on(cluster: Cluster) -> None:
    job = cluster.submit("trainer.max_steps=400")
    cluster.wait_for_training(job)
    urgent = cluster.call(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5"
    )
    cluster.wait_for(urgent, "COMPLETED")
    ended = cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
    assert ended["JobState"] == "COMPLETED" and int(ended["Restarts"]) >= 1, cluster.output(job)
    assert "saved at step" in cluster.output(job)
    assert cluster.steps() == list(range(1, 401))


def test_a_cancelled_job_stays_cancelled(cluster: Cluster) -> None:
    job = cluster.submit("trainer.max_steps=400")
    cluster.wait_for_training(job)
    cluster.call("scancel", job)
    time.sleep(10)  # longer than a requeued job waits
    ended = cluster.wait_for(job, "CANCELLED")
    assert ended["Restarts"] == "0"
    assert not (cluster.folder / "run" / "adapter").exists()
