"""A sweep's jobs on a real Slurm, disturbed in every way: each goes on by itself, and ends as an undisturbed one."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from holds import STEPS, TYPED, hold
from sweeps_on_slurm import Cluster, Sweep, figure, saved_at, site, wait_until, went_on
from wandb_files import history

pytestmark = pytest.mark.slurm
DIES = '''
import os
import signal

from transformers import TrainerCallback


class Dies(TrainerCallback):
    """Job 0 at a step that it never gets over."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5 and "/0/" in args.output_dir:
            os.kill(os.getpid(), signal.SIGKILL)
'''
SCONTROL = """#!/bin/bash
[[ $1 != requeue ]] || touch {folder}/asked
exec {scontrol} "$@"
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Cluster]:
    with site(tmp_path_factory, tiny) as cluster:
        cluster.slurm.append("hydra.launcher.sbatch.gpus_per_node=null")
        yield cluster


@pytest.fixture(scope="module")
def typed() -> list[str]:
    return ["trainer.max_steps=100", "trainer.save_steps=8", "seed=1,2,3,4,5,6"]


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, typed: list[str]) -> Sweep:
    words = ["-m", *cluster.run, "hydra.sweep.dir=here", *typed]
    subprocess.run(cluster.command(*words), cwd=cluster.folder, env=cluster.env, check=True, stdout=subprocess.DEVNULL)
    return Sweep(cluster, "here")


@pytest.fixture(scope="module")
def sweep(cluster: Cluster, typed: list[str]) -> Sweep:
    """Six jobs, each at work until the last test: four on the first node, two on the second."""
    hold(cluster.folder / "sweep")
    began = time.monotonic()
    cluster.hydratune(*cluster.slurm, "hydra.sweep.dir=sweep", *typed, TYPED)
    figure("submitting 6 jobs, without the imports", time.monotonic() - began)
    sweep = Sweep(cluster, "sweep")
    for number in range(6):
        sweep.wait_for_steps(number, more_than=STEPS - 1 if number == 2 else 0)
    return sweep


def task(cluster: Cluster, number: int) -> str:
    """Slurm's name of a job of the sweep that was submitted last."""
    return [name for name in cluster.tasks() if name.endswith(f"_{number}")][-1]


def node(cluster: Cluster, number: int) -> str:
    """Once it has one."""
    command = ["squeue", "--noheader", "--format=%N", "--jobs", task(cluster, number)]
    return str(wait_until(f"a node of job {number}", lambda: cluster.call(*command)))


def preempt(cluster: Cluster, node: str) -> None:
    """By a job of a partition with a higher priority, that has all of the node for a moment."""
    urgent = ["--partition=urgent", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 1"]
    cluster.call("sbatch", *urgent)


def wait_for_another(sweep: Sweep, number: int, after: int) -> None:
    """Until it trains again: by the next attempt, or a later one where Slurm 22.05 has started it once more."""
    wait_until(f"attempt {after + 1} of job {number}", lambda: sweep.trains(number, after))


def test_signals_requeues_kills_and_preemption(cluster: Cluster, sweep: Sweep) -> None:
    tasks = [task(cluster, number) for number in range(6)]
    before = sweep.record(5).attempt
    began = time.time()
    cluster.call("scancel", "--signal=USR1", tasks[0])  # as ahead of a time limit
    cluster.call("scontrol", "requeue", tasks[1])  # the administrator
    os.kill(sweep.record(2).pid, signal.SIGKILL)  # such as the system's, when the memory runs out
    cluster.hydratune("sweep", "cancel", "sweep", "3")
    cluster.call("scancel", tasks[4])
    preempt(cluster, node(cluster, 5))  # with SIGTERM alone
    sweep.wait_for("stopped", 3, 4)
    wait_until("job 0 stops", lambda: saved_at(sweep.screen(0)))
    figure("from a signal to the checkpoint, five jobs at once", time.time() - began)
    wait_for_another(sweep, 5, before)
    status = cluster.hydratune("sweep", "status", "sweep", "all=true")
    assert "job 3 (seed=4) cancelled" in status and "job 4 (seed=5) stopped" in status, status
    # another site, where preemption sends the signal that sbatch asked for
    cluster.configure(SlurmctldParameters="preempt_send_user_signal")
    said, before = sweep.screen(5), sweep.record(5).attempt
    preempt(cluster, node(cluster, 5))
    wait_for_another(sweep, 5, before)
    signals = [re.findall("SIG[A-Z0-9]+", text) for text in (said, sweep.screen(5).removeprefix(said))]
    assert [found[0] for found in signals] == ["SIGTERM", "SIGUSR1"] and "SIGUSR1" not in signals[0], signals
    for number in (0, 1, 5):  # which other jobs' preemption may have stopped once more
        wait_until(f"job {number} goes on", lambda number=number: went_on(sweep.screen(number)))
    assert sweep.record(1).attempt > 1
    wait_until("job 2 goes on", lambda: "going on from checkpoint-" in sweep.screen(2))


def test_a_node_dies(cluster: Cluster, sweep: Sweep) -> None:
    """With all that runs there; a second later it is another machine, and the job is started on one."""
    before, died = sweep.record(5).attempt, node(cluster, 5)
    dead = _processes_on(died, str(cluster.conf))
    dead.append(int((cluster.conf.parent / f"run/slurmd-{died}.pid").read_text()))
    for pid in dead:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.configure(SlurmdTimeout=10)  # here alone: one that got no turn on a busy machine is not dead
    try:
        wait_for_another(sweep, 5, before)
        assert node(cluster, 5) != died
    finally:
        cluster.configure(SlurmdTimeout=300)
        cluster.call("slurmd", "-N", died)


def _processes_on(node: str, conf: str) -> list[int]:
    """Of jobs, and with them Slurm's own that began them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            if f"SLURMD_NODENAME={node}".encode() in environment and f"SLURM_CONF={conf}".encode() in environment:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if "slurmstepd" in Path(f"/proc/{parent}/comm").read_text():
                    found.insert(0, parent)  # first, so that it tells nobody
                found.append(int(folder.name))
    return found


def test_all_end_as_if_undisturbed(cluster: Cluster, sweep: Sweep, undisturbed: Sweep) -> None:
    (sweep.root / "hold").unlink()
    sweep.wait_for("done", 0, 1, 2)
    assert sweep.record(3).attempt == sweep.record(4).attempt == 1, "cancelled, and it went on"
    assert not {name for name in cluster.queue() if name.endswith(("_3", "_4"))}
    assert "2 of 6 jobs submitted" in cluster.hydratune("sweep", "resume", "sweep", "trust=true")
    sweep.wait_for("done", *range(6))
    for number in range(6):
        assert sweep.adapter(number) == undisturbed.adapter(number), number
        assert sweep.steps(number) == list(range(1, 101))


def test_requeues_have_an_end(cluster: Cluster) -> None:
    (cluster.folder / "mine.py").write_text(DIES)
    cluster.hydratune(
        *cluster.slurm, "hydra.sweep.dir=ends", "seed=1,2", "trainer.max_steps=2000", "trainer.save_steps=2",
        "trainer.save_total_limit=1", "trainer.callbacks=[mine:Dies]", "hydra.launcher.max_requeues=1",
    )  # fmt: skip
    sweep = Sweep(cluster, "ends")
    wait_for_another(sweep, 1, 0)
    began = time.time()
    cluster.call("scancel", "--signal=USR1", task(cluster, 1))
    sweep.wait_for("stopped", 1)
    figure("from a signal to the record that all is saved", time.time() - began)
    lost = max(sweep.steps(1)) - saved_at(sweep.screen(1))[-1]
    figure("steps lost with a signal", lost, "steps")
    assert lost == 0
    wait_for_another(sweep, 1, 1)
    again_at_work = time.time()
    figure("from a signal to the next step", again_at_work - began)
    started = cluster.call("squeue", "--noheader", "--format=%S", "--jobs", task(cluster, 1))
    again = time.mktime(time.strptime(started, "%Y-%m-%dT%H:%M:%S"))
    figure("  of these until Slurm starts the job again", again - began)
    figure("  of these from then to the next step, imports and all", again_at_work - again)
    cluster.call("scancel", "--signal=USR1", task(cluster, 1))
    sweep.wait_for("failed", 0)
    sweep.wait_for("stopped", 1)
    cluster.wait_for_the_end()
    assert sweep.record(0).cause == (
        "it died without a word (exit status 137) after step 4, as before: another start would meet the same"
    )
    assert sweep.record(0).attempt == sweep.record(1).attempt == 2
    assert "hydra.launcher.max_requeues=1 is reached: hydratune sweep resume" in sweep.screen(1)


def test_time_limits_and_a_rank_that_dies(cluster: Cluster) -> None:
    """Jobs whose time is short, told ahead, or by TERM at its end, after which Slurm starts none again."""
    typed = [
        *cluster.slurm, "seed=1", "trainer.max_steps=100", "trainer.save_steps=8", TYPED, "trainer.save_total_limit=2",
    ]  # fmt: skip
    names: dict[str, str] = {}  # of Slurm's
    for name, more in (
        ("told", ["sbatch.signal=USR1@10", "setup=['export HOME=$PWD']"]),
        ("untold", ["sbatch.signal=null"]),
        ("ranks", ["sbatch.ntasks_per_node=2"]),
    ):
        words = [f"hydra.launcher.{word}" for word in more]
        words += ["tracking=wandb_offline"] * (name == "told")
        hold(cluster.folder / name)
        cluster.hydratune(*typed, f"hydra.sweep.dir={name}", *words)
        names[name] = task(cluster, 0)
    told, untold, ranks = (Sweep(cluster, name) for name in names)
    for sweep, left in ((told, 40), (untold, 1)):
        sweep.wait_for_steps(0)
        # since training may begin after any number of minutes; Slurm looks at limits each half minute
        cluster.call("scontrol", "update", f"jobid={names[sweep.root.name]}", f"EndTime=now+{left}")
    ranks.wait_for_steps(0, more_than=STEPS - 1)
    [rank_1] = [pid for pid in _processes_of(cluster, "SLURM_PROCID=1") if pid != ranks.record(0).pid]
    os.kill(rank_1, signal.SIGKILL)
    wait_until("a death is noted", (ranks.root / "0" / "deaths.json").is_file)
    (ranks.root / "hold").unlink()
    wait_until("Slurm starts it again", lambda: "start 2" in told.screen(0))
    cluster.call("scontrol", "update", f"jobid={names['told']}", "TimeLimit=10")
    (told.root / "hold").unlink()
    ranks.wait_for("done", 0)
    # Slurm 22.05 may end the new step by a call that was meant for the one that died: saved, and started once more
    assert "going on from checkpoint-" in ranks.screen(0) and ranks.record(0).attempt > 1
    told.wait_for("done", 0)
    assert "SIGUSR1: saved at step" in told.screen(0) and went_on(told.screen(0)), told.screen(0)
    untold.wait_for("stopped", 0)
    assert "SIGTERM: saved at step" in untold.screen(0), untold.screen(0)
    cluster.wait_for_the_end()
    (untold.root / "hold").unlink()
    cluster.hydratune("sweep", "resume", "untold", "hydra.launcher.sbatch.time=5", "trust=true")
    untold.wait_for("done", 0)
    for sweep in (told, untold):
        assert sweep.steps(0) == list(range(1, 101))
    assert told.adapter(0) == untold.adapter(0)
    # each start that came to training has written a file, all of one run of the tracker
    files = sorted((told.root / "0" / "wandb").glob("offline-run-*/run-*.wandb"))
    starts = 1 + told.screen(0).count("going on from checkpoint-")
    assert len(files) == starts and len({path.stem for path in files}) == 1, files
    sent = [row["train/global_step"] for path in files for row in history(path) if "train/loss" in row]
    assert sent == list(range(1, 101))


def _processes_of(cluster: Cluster, variable: str) -> list[int]:
    """Of training, those with this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            here = f"SLURM_CONF={cluster.conf}".encode() in environment and variable.encode() in environment
            if here and "run_dir=" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def test_slurmctld_is_away_when_a_job_is_to_start_again(cluster: Cluster) -> None:
    """And another process seems to have the job when it does, as the lock of a machine that has died."""
    stub = cluster.folder / "stubs" / "scontrol"
    stub.parent.mkdir()
    stub.write_text(SCONTROL.format(scontrol=shutil.which("scontrol"), folder=stub.parent))
    stub.chmod(0o755)
    hold(cluster.folder / "away")
    setup = f"hydra.launcher.setup=['export PATH={stub.parent}:$PATH']"
    cluster.hydratune(*cluster.slurm, "hydra.sweep.dir=away", "seed=1", "trainer.max_steps=20", TYPED, setup)
    sweep = Sweep(cluster, "away")
    sweep.wait_for_steps(0)
    name = task(cluster, 0)
    pid = int((cluster.conf.parent / "run/slurmctld.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until("slurmctld ends", lambda: not Path(f"/proc/{pid}").exists())
    os.kill(sweep.record(0).pid, signal.SIGUSR1)
    sweep.wait_for("stopped", 0)
    (sweep.root / "hold").unlink()
    wait_until("Slurm is asked to start it again", (stub.parent / "asked").is_file)
    cluster.call("slurmctld")
    with (sweep.root / "0" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wait_until("Slurm starts it again", lambda: "start 2" in sweep.screen(0))
        said = cluster.hydratune("sweep", "resume", "away", "trust=true")
        assert "all done, cancelled, or in Slurm's queue" in said and list(cluster.queue()) == [name]
        wait_until("it waits", lambda: "waiting for the process that had the job" in sweep.screen(0))
    sweep.wait_for("done", 0)
    assert went_on(sweep.screen(0)) and saved_at(sweep.screen(0))


def test_two_hundred_jobs(cluster: Cluster) -> None:
    began = time.monotonic()
    said = cluster.hydratune(
        *cluster.slurm, "hydra.sweep.dir=many", "sweep.seeds=200", "+hydra.launcher.sbatch.hold=true"
    )
    figure("submitting 200 jobs, without the imports", time.monotonic() - began)
    assert "200 of 200 jobs submitted" in said
    began = time.monotonic()
    assert "200 queued" in cluster.hydratune("sweep", "status", "many")
    figure("the status of 200 jobs", time.monotonic() - began)
    cluster.hydratune("sweep", "cancel", "many")
    cluster.wait_for_the_end()
    assert [path.name for path in (cluster.folder / "many" / "slurm").glob("*.sh")] == ["0.sh"]
    assert "200 cancelled" in cluster.hydratune("sweep", "status", "many")
