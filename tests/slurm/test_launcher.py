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
from holds import STEPS, TYPED, hold
from sweeps_on_slurm import HERE, PATIENCE, running_slurm, saved_at, wait_until, went_on

pytestmark = pytest.mark.slurm
LAUNCHERS = Path(__file__).parents[2] / "launchers"
LAUNCHER = LAUNCHERS / "train.sbatch"
LAST = 2 * STEPS
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Cluster:
    """Two nodes, and a folder to submit from."""

    def __init__(self, folder: Path, conf: str, tiny: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        command = str(Path(sys.executable).with_name("hydratune"))
        self.env = {
            **environment, "SLURM_CONF": conf, "HYDRATUNE": command, "HYDRATUNE_PYTHON": sys.executable,
            "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}",
        }  # fmt: skip
        self.run = [
            "model=local", f"model.name_or_path={tiny}", "data=jsonl", "data.path=rows.jsonl", "quantization=none",
            "run_dir=run", "trainer.lr_scheduler_type=constant", "stages=[prepare,train]",
        ]  # fmt: skip

    def call(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command[0]}: {done.stderr}"
        return done.stdout.strip()

    def submission(self, *arguments: str, options: tuple[str, ...] = (), launcher: Path = LAUNCHER) -> list[str]:
        return ["sbatch", "--parsable", "--cpus-per-task=1", *options, str(launcher), *self.run, *arguments]

    def submit(self, *arguments: str, options: tuple[str, ...] = (), launcher: Path = LAUNCHER) -> str:
        return self.call(*self.submission(*arguments, options=options, launcher=launcher))

    def submit_and_wait(self, *arguments: str) -> tuple[int, str]:
        """The exit status of `sbatch --wait`, which is the job's, and the job's number."""
        command = self.submission(*arguments, options=("--wait",))
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True, timeout=PATIENCE
        )
        return done.returncode, done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        said = shlex.split(self.call("scontrol", "show", "job", "-o", job))
        return dict(word.split("=", 1) for word in said if "=" in word)

    def wait_for(self, job: str, *states: str) -> dict[str, str]:
        states = states or ENDED
        deadline = time.monotonic() + PATIENCE
        while (found := self.state(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{found}\n{self.output(job)}"
            time.sleep(0.5)
        return found

    def train(self, options: tuple[str, ...] = (), launcher: Path = LAUNCHER) -> str:
        """A job that is at work, and stays it until it gets a signal."""
        hold(self.folder)
        job = self.submit(f"trainer.max_steps={LAST}", TYPED, options=options, launcher=launcher)
        log = self.folder / "run" / "train_log.jsonl"
        wait_until(lambda: self.output(job), lambda: log.is_file() and log.stat().st_size)
        return job

    def goes_on(self, job: str) -> None:
        """To its end, from where it has saved its state."""
        wait_until(lambda: self.output(job), lambda: saved_at(self.output(job)))
        (self.folder / "hold").unlink()
        ended, said = self.wait_for(job), self.output(job)
        # more than one restart where Slurm 22.05 ends the new step by a late call that was meant for the old one
        assert ended["JobState"] == "COMPLETED" and 1 <= len(saved_at(said)) <= int(ended["Restarts"]), said
        assert went_on(said), said
        assert self.steps() == list(range(1, LAST + 1))

    def output(self, job: str) -> str:
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.is_file() else ""

    def steps(self) -> list[int]:
        return [json.loads(line)["step"] for line in (self.folder / "run" / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SLURM_CONF of a cluster that this module starts and stops."""
    with running_slurm(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


@pytest.fixture
def cluster(tmp_path: Path, slurm: str, tiny: Path, rows: Path, environment: dict[str, str]) -> Cluster:
    return Cluster(tmp_path, slurm, tiny, environment)


def test_a_job_trains_and_merges(cluster: Cluster) -> None:
    status, job = cluster.submit_and_wait("trainer.max_steps=4", "stages=[prepare,train,merge]")
    assert status == 0, cluster.output(job)
    assert cluster.state(job)["JobState"] == "COMPLETED"
    run = cluster.folder / "run"
    assert (run / "adapter" / "adapter_config.json").is_file()
    assert (run / "merged" / "config.json").is_file()
    receipts = {stage: json.loads((run / "receipts" / f"{stage}.json").read_text()) for stage in ("train", "merge")}
    assert {stage: receipt["status"] for stage, receipt in receipts.items()} == {"train": "done", "merge": "done"}
    assert cluster.steps() == [1, 2, 3, 4]


def test_a_mistake_fails_the_job_with_its_sentence(cluster: Cluster) -> None:
    status, job = cluster.submit_and_wait("lora.rnak=3")
    assert status == 2
    failed = cluster.state(job)
    assert (failed["JobState"], failed["ExitCode"]) == ("FAILED", "2:0")
    assert "lora.rnak=3: there is no key lora.rnak (did you mean lora.r?)." in cluster.output(job)


def test_a_signal_requeues_and_the_job_goes_on(cluster: Cluster) -> None:
    job = cluster.train()
    cluster.call("scancel", "--signal=USR1", job)
    cluster.goes_on(job)


def test_a_job_that_may_not_be_requeued_fails_with_75(cluster: Cluster) -> None:
    job = cluster.train(options=("--no-requeue",))
    cluster.call("scancel", "--signal=USR1", job)
    ended = cluster.wait_for(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "75:0"), cluster.output(job)
    assert "saved at step" in cluster.output(job)


def test_a_preempted_job_goes_on(cluster: Cluster) -> None:
    job = cluster.train()
    urgent = cluster.call(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5"
    )
    cluster.wait_for(urgent, "COMPLETED")
    cluster.goes_on(job)


def test_a_cancelled_job_stays_cancelled(cluster: Cluster) -> None:
    job = cluster.train()
    cluster.call("scancel", job)
    time.sleep(10)  # longer than a requeued job waits
    ended = cluster.wait_for(job, "CANCELLED")
    assert ended["Restarts"] == "0"
    assert not (cluster.folder / "run" / "adapter").exists()
