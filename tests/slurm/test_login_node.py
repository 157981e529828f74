"""A login node is no place to train on: told apart from a compute node, a job and a machine without Slurm."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_launcher import Cluster, cluster, slurm

from hydratune.run import login_node

pytestmark = pytest.mark.slurm
__all__ = ["cluster", "slurm"]  # fixtures
SAID = (
    "hydratune: This is a login node of a Slurm cluster, and train would run on it: set hydra/launcher=slurm_1gpu to submit "
    "that, put srun or salloc before the command, or set HYDRATUNE_LOGIN_NODE=1 in the environment to run it here.\n"
)


@pytest.fixture
def login(cluster: Cluster) -> Cluster:
    """The same cluster as a machine sees it that is none of its nodes."""
    conf = Path(cluster.env["SLURM_CONF"])
    lines = conf.read_text().splitlines()
    elsewhere = [
        " ".join("NodeHostname=elsewhere" if w.startswith("NodeHostname=") else w for w in one.split(" "))
        for one in lines
    ]
    cluster.env["SLURM_CONF"] = str(conf.with_name("login.conf"))
    Path(cluster.env["SLURM_CONF"]).write_text("\n".join([*elsewhere, ""]))
    return cluster


def call(cluster: Cluster, *words: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "hydratune", *cluster.run, "trainer.max_steps=2", *words]
    return subprocess.run(command, cwd=cluster.folder, env=cluster.env, capture_output=True, text=True, timeout=240)


def test_training_is_refused_in_a_sentence(login: Cluster) -> None:
    done = call(login)
    assert (done.returncode, done.stderr) == (2, SAID)
    assert not (login.folder / "run").exists()


def test_a_sweep_on_this_machine_is_refused_too(login: Cluster) -> None:
    login.run = [word for word in login.run if not word.startswith("run_dir=")]
    done = call(login, "-m", "lora.r=4,8", "hydra.sweep.dir=swept")
    assert (done.returncode, done.stderr) == (2, SAID.replace("This is", "every job: This is"))
    assert not (login.folder / "swept").exists()


def test_what_is_light_is_not(login: Cluster) -> None:
    assert call(login, "stages=[]").returncode == 0
    assert call(login, "stages=[prepare]").returncode == 0


def test_an_allocation_and_a_wish_are_heard(login: Cluster) -> None:
    allocated = call(login, before=("srun", "--quiet", "--gpus-per-node=1"))
    assert allocated.returncode == 0, allocated.stderr
    login.env["HYDRATUNE_LOGIN_NODE"] = "1"
    login.run[login.run.index("run_dir=run")] = "run_dir=other"
    wished = call(login)
    assert wished.returncode == 0, wished.stderr


def test_a_sweep_that_is_submitted_is_not(login: Cluster) -> None:
    login.run = [word for word in login.run if not word.startswith("run_dir=")]
    words = ("hydra/launcher=slurm_1gpu", "hydra.launcher.sbatch.cpus_per_task=1", "hydra.launcher.wait=true")
    done = call(login, "-m", "hydra.sweep.dir=swept", *words, "lora.r=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "job 0 done" in done.stdout


def test_a_compute_node_is_none(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    assert login_node.refusal(["train"]) == []


@pytest.mark.parametrize("gone", ["sbatch", "slurm.conf"])
def test_without_slurm_nothing_is_started(gone: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(login_node, "CONFIGURATIONS", ())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.delenv("SLURM_CONF", raising=False)
    if gone == "sbatch":
        monkeypatch.setenv("PATH", str(tmp_path))
        (tmp_path / "slurm.conf").touch()
        monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert login_node.refusal(["train"]) == []
