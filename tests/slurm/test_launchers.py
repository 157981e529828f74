"""What a person submits by hand: launchers/, each on a real Slurm or on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps_on_slurm import port, wait_until
from test_launcher import LAUNCHERS, Cluster, cluster, slurm

pytestmark = pytest.mark.slurm
__all__ = ["cluster", "slurm"]  # fixtures
MULTINODE = LAUNCHERS / "multinode.sbatch"
TWO = ("--ntasks-per-node=1", "--gpus-per-node=1")
WAYS = pytest.mark.parametrize("torchrun", ["", "1"], ids=["a task a GPU", "torchrun"])


def receipt(cluster: Cluster) -> dict[str, dict[str, object]]:
    found = json.loads((cluster.folder / "run" / "receipts" / "train.json").read_text())
    assert isinstance(found, dict)
    return found


@WAYS
def test_two_nodes_are_one_run_that_a_signal_requeues(cluster: Cluster, torchrun: str) -> None:
    cluster.env["TORCHRUN"] = torchrun
    job = cluster.train(options=TWO, launcher=MULTINODE)
    assert cluster.state(job)["NumNodes"] == "2"
    cluster.call("scancel", "--signal=USR1", job)
    cluster.goes_on(job)
    assert receipt(cluster)["hardware"]["world_size"] == 2


@WAYS
def test_a_mistake_on_two_nodes_fails_with_its_sentence(cluster: Cluster, torchrun: str) -> None:
    cluster.env["TORCHRUN"] = torchrun
    job = cluster.submit("lora.rnak=3", options=TWO, launcher=MULTINODE)
    failed = cluster.wait_for(job)
    assert (failed["JobState"], failed["ExitCode"], failed["Restarts"]) == ("FAILED", "2:0", "0"), cluster.output(job)
    assert cluster.output(job).count("there is no key lora.rnak") == 1, cluster.output(job)


def test_local_sh_takes_the_threads_and_the_gpu_that_it_is_told(cluster: Cluster, tmp_path: Path) -> None:
    said = tmp_path / "python"
    said.write_text('#!/bin/bash\necho "$OMP_NUM_THREADS|$CUDA_VISIBLE_DEVICES|$*"\n')
    said.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "HYDRATUNE_PYTHON": str(said)}

    def started(**more: str) -> str:
        command = [LAUNCHERS / "local.sh", "experiment=demo"]
        return subprocess.run(command, env={**env, **more}, capture_output=True, text=True, check=True).stdout.strip()

    assert started() == "|0|-m hydratune experiment=demo"
    assert started(THREADS="3", GPU="1") == "3|1|-m hydratune experiment=demo"
    assert started(GPU="") == "||-m hydratune experiment=demo"
    assert started(CUDA_VISIBLE_DEVICES="5") == "|5|-m hydratune experiment=demo"
    cluster.call(str(LAUNCHERS / "local.sh"), *cluster.run, "stages=[prepare]")
    assert (cluster.folder / "run" / "receipts" / "prepare.json").is_file()


def test_sweep_sh_submits_with_the_sites_file(cluster: Cluster) -> None:
    site = cluster.folder / "mine" / "cluster" / "site.yaml"
    site.parent.mkdir(parents=True)
    site.write_text("# @package hydra.launcher\nsbatch:\n  partition: urgent\n  cpus_per_task: 1\n")
    run = [word for word in cluster.run if not word.startswith("run_dir=")]
    typed = [*run, "trainer.max_steps=2", "lora.r=4,8", "hydra.sweep.dir=swept", "+hydra.launcher.sbatch.hold=true"]
    said = subprocess.run(
        [LAUNCHERS / "sweep.sh", *typed],
        cwd=cluster.folder,
        env=cluster.env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    assert "2 of 2 jobs submitted, in swept\n  hydratune sweep status swept" in said.stdout
    assert {line for line in cluster.call("squeue", "-h", "-o", "%P").split()} == {"urgent"}
    cluster.call("scontrol", "release", *cluster.call("squeue", "-h", "-o", "%F").split())
    wait_until("all end", lambda: not cluster.call("squeue", "-h"))
    status = cluster.call(sys.executable, "-m", "hydratune", "sweep", "status", "swept")
    assert "2 done" in status, status


def test_sweep_sh_names_a_site_that_is_not_there(cluster: Cluster) -> None:
    cluster.env["SITE"] = "mine/cluster/gone.yaml"
    done = subprocess.run([LAUNCHERS / "sweep.sh"], cwd=cluster.folder, env=cluster.env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "sweep.sh: there is no file mine/cluster/gone.yaml\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user to be is root's to choose")
def test_local_slurm_runs_without_root(tmp_path_factory: pytest.TempPathFactory) -> None:
    nobody = 65534
    folder = Path("/tmp") / f"hydratune-nobody-{os.getpid()}"  # pytest's own folders are root's alone
    folder.mkdir()
    os.chown(folder, nobody, nobody)
    script = folder / "local_slurm.sh"
    script.write_bytes((LAUNCHERS / "local_slurm.sh").read_bytes())
    script.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "PORT": port(2500)}

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            user=nobody,
            group=nobody,
            extra_groups=[],
        )

    try:
        assert call("./local_slurm.sh", "status", "d").returncode != 0
        started = call("./local_slurm.sh", "start", "d")
        assert started.returncode == 0, started.stderr
        again = call("./local_slurm.sh", "start", "d")
        assert (again.returncode, "it runs already" in again.stderr) == (1, True)
        assert "n[1-2]" in call("./local_slurm.sh", "status", "d").stdout
        env["SLURM_CONF"] = str(folder / "d" / "slurm.conf")
        done = call("sbatch", "--wait", "--nodes=2", "--gpus-per-node=1", "--output=out", "--wrap", "srun id -u")
        assert done.returncode == 0, done.stderr
        assert (folder / "out").read_text() == f"{nobody}\n" * 2
    finally:
        stopped = call("./local_slurm.sh", "stop", "d")
        subprocess.run(["rm", "-r", folder], check=True)
    assert stopped.returncode == 0, stopped.stderr


def test_local_slurm_says_what_it_needs(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "mkdir", "hostname", "id", "dirname"):
        (tools / name).symlink_to(Path("/usr/bin", name))
    env = {"PATH": str(tools)}
    text = (LAUNCHERS / "local_slurm.sh").read_text().replace("PATH=$PATH:/usr/sbin", "PATH=$PATH")
    done = subprocess.run(
        ["/bin/bash", "-c", text, "local_slurm.sh", "start", "d"], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == (
        "local_slurm: munged slurmctld slurmd srun not found: apt-get install munge slurmctld slurmd slurm-client\n"
    )
