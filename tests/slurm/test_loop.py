"""A sweep's jobs on a real Slurm, disturbed in every way: each goes on by itself, and ends as an undisturbed one."""

import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sweeps_on_slurm import Cluster, Sweep, figure, site, wait_until
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

SLOW = """
import os
import time

from transformers import TrainerCallback


class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        time.sleep(float(os.environ["SLOW"]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Cluster]:
    with site(tmp_path_factory, tiny) as cluster:
        cluster.configure(SlurmdTimeout=10)
        cluster.slurm.append("hydra.launcher.sbatch.gpus_per_node=null")
        yield cluster


@pytest.fixture(scope="module")
def typed() -> list[str]:
    return ["trainer.max_steps=300", "trainer.save_steps=25", "seed=1,2,3,4,5,6"]


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, typed: list[str]) -> Sweep:
    words = ["-m", *cluster.run, "hydra.sweep.dir=here", *typed]
    subprocess.run(cluster.command(*words), cwd=cluster.folder, env=cluster.env, check=True, stdout=subprocess.DEVNULL)
    return Sweep(cluster, "here")


@pytest.fixture(scope="module")
def sweep(cluster: Cluster, typed: list[str]) -> Sweep:
    """Six jobs, each at work: four on the first node, two on the second."""
    began = time.monotonic()
    cluster.hydratune(*cluster.slurm, "hydra.sweep.dir=sweep", *typed)
    figure("submitting 6 jobs, without the imports", time.monotonic() - began)
    sweep = Sweep(cluster, "sweep")
    for number in range(6):
        sweep.wait_for_steps(number, more_than=30 if number == 2 else 0)
    return sweep


def task(cluster: Cluster, number: int) -> str:
    """Slurm's name of a job of the sweep that was submitted last."""
    return max((name for name in cluster.queue() if name.endswith(f"_{number}")), key=lambda name: int(name[:-2]))


def node(cluster: Cluster, number: int) -> str:
    return cluster.call("squeue", "--noheader", "--format=%N", "--jobs", task(cluster, number))


def preempt(cluster: Cluster, node: str) -> None:
    """By a job of a partition with a higher priority, that has all of the node for a moment."""
    urgent = ["--partition=urgent", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 1"]
    cluster.call("sbatch", *urgent)


def wait_for_attempt(sweep: Sweep, number: int, attempt: int) -> None:
    """Until it trains again."""
    wait_until(
        f"attempt {attempt} of job {number}",
        lambda: (found := sweep.record(number)) and found.state == "running" and found.attempt == attempt,
    )
    sweep.wait_for_steps(number, more_than=max(sweep.steps(number), default=0))


def saved_at(sweep: Sweep, number: int) -> list[int]:
    return [int(step) for step in re.findall(r"saved at step (\d+)", sweep.screen(number))]


def _went_on(sweep: Sweep, number: int) -> bool:
    """From each step where it saved its state."""
    return all(f"going on from checkpoint-{step}" in sweep.screen(number) for step in saved_at(sweep, number))


def test_signals_requeues_kills_and_preemption(cluster: Cluster, sweep: Sweep) -> None:
    tasks = [task(cluster, number) for number in range(6)]
    began = time.time()
    cluster.call("scancel", "--signal=USR1", tasks[0])  # as ahead of a time limit
    cluster.call("scontrol", "requeue", tasks[1])  # the administrator
    os.kill(sweep.record(2).pid, signal.SIGKILL)  # such as the system's, when the memory runs out
    cluster.hydratune("sweep", "cancel", "sweep", "3")
    cluster.call("scancel", tasks[4])
    preempt(cluster, node(cluster, 5))  # with SIGTERM alone
    sweep.wait_for("stopped", 3, 4)
    wait_until("job 0 stops", lambda: saved_at(sweep, 0))
    figure("from a signal to the checkpoint, five jobs at once", time.time() - began)
    wait_for_attempt(sweep, 5, 2)
    status = cluster.hydratune("sweep", "status", "sweep", "all=true")
    assert "job 3 (seed=4) cancelled" in status and "job 4 (seed=5) stopped" in status, status
    # another site, where preemption sends the signal that sbatch asked for
    cluster.configure(SlurmctldParameters="preempt_send_user_signal")
    preempt(cluster, node(cluster, 5))
    wait_for_attempt(sweep, 5, 3)
    assert sweep.screen(5).count("SIGTERM") == 1 and sweep.screen(5).count("SIGUSR1") == 1
    for number in (0, 1, 5):  # which other jobs' preemption may have stopped once more
        wait_until(f"job {number} goes on", lambda number=number: _went_on(sweep, number))
    assert sweep.record(1).attempt > 1
    wait_until("job 2 goes on", lambda: "going on from checkpoint-" in sweep.screen(2))


def test_a_node_dies(cluster: Cluster, sweep: Sweep) -> None:
    """With all that runs there; a second later it is another machine, and the job is started on one."""
    died = node(cluster, 5)
    dead = _processes_on(died, str(cluster.conf))
    dead.append(int((cluster.conf.parent / f"run/slurmd-{died}.pid").read_text()))
    for pid in dead:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for_attempt(sweep, 5, 4)
    assert node(cluster, 5) != died
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
    sweep.wait_for("done", 0, 1, 2)
    assert sweep.record(3).attempt == sweep.record(4).attempt == 1, "cancelled, and it went on"
    assert not {name for name in cluster.queue() if name.endswith(("_3", "_4"))}
    assert "2 of 6 jobs submitted" in cluster.hydratune("sweep", "resume", "sweep")
    sweep.wait_for("done", *range(6))
    for number in range(6):
        assert sweep.adapter(number) == undisturbed.adapter(number), number
        assert sweep.steps(number) == list(range(1, 301))


def test_requeues_have_an_end(cluster: Cluster) -> None:
    (cluster.folder / "mine.py").write_text(DIES)
    cluster.env["PYTHONPATH"] = f"{cluster.folder}:{cluster.env.get('PYTHONPATH', '')}"
    cluster.hydratune(
        *cluster.slurm, "hydra.sweep.dir=ends", "seed=1,2", "trainer.max_steps=2000", "trainer.save_steps=2",
        "trainer.save_total_limit=1", "trainer.callbacks=[mine:Dies]", "hydra.launcher.max_requeues=1",
    )  # fmt: skip
    sweep = Sweep(cluster, "ends")
    wait_for_attempt(sweep, 1, 1)
    began = time.time()
    cluster.call("scancel", "--signal=USR1", task(cluster, 1))
    sweep.wait_for("stopped", 1)
    figure("from a signal to the record that all is saved", time.time() - began)
    lost = max(sweep.steps(1)) - saved_at(sweep, 1)[-1]
    figure("steps lost with a signal", lost, "steps")
    assert lost == 0
    wait_for_attempt(sweep, 1, 2)
    went_on = time.time()
    figure("from a signal to the next step", went_on - began)
    started = cluster.call("squeue", "--noheader", "--format=%S", "--jobs", task(cluster, 1))
    again = time.mktime(time.strptime(started, "%Y-%m-%dT%H:%M:%S"))
    figure("  of these until Slurm starts the job again", again - began)
    figure("  of these from then to the next step, imports and all", went_on - again)
    cluster.call("scancel", "--signal=USR1", task(cluster, 1))
    sweep.wait_for("failed", 0)
    sweep.wait_for("stopped", 1)
    wait_until("nothing is left", lambda: not cluster.queue())
    assert sweep.record(0).cause == (
        "it died without a word (exit status 137) after step 4, as before: another start would meet the same"
    )
    assert sweep.record(0).attempt == sweep.record(1).attempt == 2
    assert "hydra.launcher.max_requeues=1 is reached: hydratune sweep resume" in sweep.screen(1)


def test_time_limits_and_a_rank_that_dies(cluster: Cluster) -> None:
    """Jobs that a minute is too short for, told ahead, or by TERM at its end, after which Slurm starts none again."""
    (cluster.folder / "slow.py").write_text(SLOW)
    typed = [
        *cluster.run, "seed=1", "trainer.max_steps=300", "trainer.save_steps=20", "trainer.callbacks=[slow:Slow]",
        "trainer.save_total_limit=2",
    ]  # fmt: skip
    for name, more in (
        ("told", ["sbatch.time=1", "sbatch.signal=USR1@10", "setup=['export SLOW=0.1 HOME=$PWD']"]),
        ("untold", ["sbatch.time=1", "sbatch.signal=null", "setup=['export SLOW=0.35']"]),
        ("ranks", ["sbatch.ntasks_per_node=2", "setup=['export SLOW=0.1']"]),
    ):
        words = [f"hydra.launcher.{word}" for word in more]
        words += ["tracking=wandb_offline"] * (name == "told")
        cluster.hydratune(*cluster.slurm[:-1], *typed, f"hydra.sweep.dir={name}", *words, cluster.slurm[-1])
    told, untold, ranks = (Sweep(cluster, name) for name in ("told", "untold", "ranks"))
    ranks.wait_for_steps(0, more_than=25)
    [rank_1] = [pid for pid in _processes_of(cluster, "SLURM_PROCID=1") if pid != ranks.record(0).pid]
    os.kill(rank_1, signal.SIGKILL)
    wait_until("a death is noted", (ranks.root / "0" / "deaths.json").is_file)
    ranks.wait_for("done", 0)
    # Slurm 22.05 may end the new step by a call that was meant for the one that died: saved, and started once more
    assert "going on from checkpoint-" in ranks.screen(0) and ranks.record(0).attempt > 1
    told.wait_for("done", 0)
    assert "SIGUSR1: saved at step" in told.screen(0) and _went_on(told, 0), told.screen(0)
    untold.wait_for("stopped", 0)
    assert "SIGTERM: saved at step" in untold.screen(0), untold.screen(0)
    wait_until("Slurm has ended it", lambda: not cluster.queue())
    cluster.hydratune("sweep", "resume", "untold", "hydra.launcher.sbatch.time=5", "trust=true")
    untold.wait_for("done", 0)
    for sweep in (told, untold):
        assert sweep.steps(0) == list(range(1, 301))
    assert told.adapter(0) == untold.adapter(0)
    # each start has written a file, all of one run of the tracker
    files = sorted((told.root / "0" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == told.record(0).attempt and len({path.stem for path in files}) == 1, files
    sent = [row["train/global_step"] for path in files for row in history(path) if "train/loss" in row]
    assert sent == list(range(1, 301))


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
    cluster.hydratune(*cluster.slurm, "hydra.sweep.dir=away", "seed=1", "trainer.max_steps=400")
    sweep = Sweep(cluster, "away")
    sweep.wait_for_steps(0)
    name = task(cluster, 0)
    pid = int((cluster.conf.parent / "run/slurmctld.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until("slurmctld ends", lambda: not Path(f"/proc/{pid}").exists())
    os.kill(sweep.record(0).pid, signal.SIGUSR1)
    sweep.wait_for("stopped", 0)
    time.sleep(1)
    cluster.call("slurmctld")
    with (sweep.root / "0" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wait_until("Slurm starts it again", lambda: "start 2" in sweep.screen(0))
        said = cluster.hydratune("sweep", "resume", "away")
        assert "all done, cancelled, or in Slurm's queue" in said and list(cluster.queue()) == [name]
        wait_until("it waits", lambda: "waiting for the process that had the job" in sweep.screen(0))
    sweep.wait_for("done", 0)
    assert _went_on(sweep, 0) and saved_at(sweep, 0)


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
    wait_until("no job is left", lambda: not cluster.queue())
    assert [path.name for path in (cluster.folder / "many" / "slurm").glob("*.sh")] == ["0.sh"]
    assert "200 cancelled" in cluster.hydratune("sweep", "status", "many")
