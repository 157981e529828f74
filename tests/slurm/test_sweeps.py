"""Sweeps on a real Slurm: submitted and left, followed, refused, prepared for; Slurm forgets a job five seconds after it."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from sweeps_on_slurm import Cluster, Sweep, site, wait_until

from hydratune.sweep import slurm_limits
from hydratune.sweep.slurm import Slurm

pytestmark = pytest.mark.slurm

READS = '''
import os

from transformers import TrainerCallback


class Reads(TrainerCallback):
    """Writes down what each process trains on."""

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **_):
        path = f"read-{os.environ['SLURM_NTASKS']}-{os.environ['SLURM_PROCID']}.txt"

        def note(module, arguments, named):
            with open(path, "a") as file:
                file.write(processing_class.decode(named["input_ids"].flatten()))

        model.register_forward_pre_hook(note, with_kwargs=True)
'''


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Cluster]:
    with site(tmp_path_factory, tiny) as cluster:
        partitions = (
            "PartitionName=short Nodes=n[1-2] MaxTime=5\nPartitionName=theirs Nodes=n[1-2] AllowAccounts=rich\n"
        )
        cluster.conf.write_text(cluster.conf.read_text() + partitions)
        cluster.configure(MinJobAge=5, MaxArraySize=4)  # three tasks an array
        yield cluster


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> None:
    """Of the test before in Slurm's queue."""
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").wait_for_the_end()


def test_submitted_killed_followed_and_finished(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "a user's sweep")
    typed = [
        'hydra.sweep.dir="a user\'s sweep"',
        "lora.r=2,4,8",
        "trainer.learning_rate=1e-3,1e-4",
        "trainer.max_steps=4",
    ]
    command = cluster.command(*cluster.slurm, *typed, "hydra.launcher.sbatch.gpus_per_node=2")  # all that a node has
    # an sbatch that doesn't say at once what it has done
    slow = cluster.folder / "bin" / "sbatch"
    slow.parent.mkdir()
    go = slow.with_name("go")
    slow.write_text(
        f'#!/bin/bash\n{shutil.which("sbatch")} "$@" || exit\n'
        f"[[ $* == *--test-only* ]] || until [ -e {go} ]; do sleep 0.1; done\n"
    )
    slow.chmod(0o755)
    path = {"PATH": f"{slow.parent}:{cluster.env['PATH']}"}
    first = subprocess.Popen(command, cwd=cluster.folder, env=cluster.env | path)
    wait_until("a first array", lambda: len(cluster.queue()) == 3)
    first.kill()
    first.wait()
    go.touch()
    again = subprocess.Popen(command, cwd=cluster.folder, env=cluster.env, stdout=subprocess.PIPE, text=True)
    assert again.stdout
    said = ""
    while "submitted" not in said:
        said = again.stdout.readline()
        assert said
    again.send_signal(signal.SIGKILL)
    again.wait()
    assert said == "3 of 6 jobs submitted, in a user's sweep\n"
    last = cluster.tasks()[-1]
    cluster.call("scontrol", "hold", last)  # until it has been seen to wait
    (sweep.root / "5" / "checkpoints").write_text("")  # which spoils that job
    arrays = [path.read_text().split() for path in sorted((sweep.root / "slurm").glob("*.jobs"))]
    assert [array[::2] for array in arrays] == [["0", "1", "2"], ["3", "4", "5"]]

    status = wait_until("a job at work", lambda: _running(text := _status(cluster, sweep)) and text)
    assert re.search(r"job \d \(lora.r=\d .*\) running, on n[12], \d:\d\d:\d\d left of its time limit, Slurm's", status)
    assert re.search(r"job 5 .* queued, pending( \(\w+\))?, Slurm's job \d+_2", status), status
    tasks = cluster.queue()
    said = cluster.hydratune(*cluster.slurm, *typed, "hydra.launcher.sbatch.gpus_per_node=2")
    assert "all done, cancelled, or in Slurm's queue" in said and "other settings" not in said
    assert set(cluster.queue()) <= set(tasks), "doubled"
    cluster.call("scontrol", "release", last)
    here = subprocess.Popen(
        cluster.command("-m", *cluster.run, *typed, "hydra.sweep.dir=here"), cwd=cluster.folder, env=cluster.env
    )
    sweep.wait_for("done", 0, 1, 2, 3, 4)
    sweep.wait_for("failed", 5)
    assert here.wait() == 0
    for number in range(5):
        assert sweep.adapter(number) == Sweep(cluster, "here").adapter(number)


def _status(cluster: Cluster, sweep: Sweep) -> str:
    return cluster.hydratune("sweep", "status", str(sweep.root))


def _running(text: str) -> bool:
    return " running, on n" in text


def test_a_bad_job_has_its_cause_and_goes_on_when_asked(cluster: Cluster) -> None:
    """In the sweep above, which Slurm has forgotten."""
    sweep = Sweep(cluster, "a user's sweep")
    wait_until("Slurm forgets", lambda: "JobId=" not in _jobs(cluster))
    status = _status(cluster, sweep)
    assert "6 jobs, 5 done, 1 failed" in status
    assert "job 5 (lora.r=8 trainer.learning_rate=0.0001) failed (attempt 1): " in status
    assert "checkpoints" in sweep.record(5).cause
    assert "Traceback" in sweep.screen(5)
    cause = sweep.record(5).cause
    assert cause.split(":")[0] in cluster.hydratune("sweep", "logs", str(sweep.root))
    assert "1 failed" in cluster.hydratune("sweep", "report", str(sweep.root))
    (sweep.root / "5" / "checkpoints").unlink()
    held = "+hydra.launcher.sbatch.hold=true"
    assert "1 of 6 jobs submitted" in cluster.hydratune("sweep", "resume", str(sweep.root), held)
    assert "jobs: all done, cancelled, or in Slurm's queue" in cluster.hydratune("sweep", "resume", str(sweep.root))
    [task] = cluster.queue()
    cluster.call("scontrol", "release", task)
    sweep.wait_for("done", 5)
    assert sweep.adapter(5) == Sweep(cluster, "here").adapter(5)


def _jobs(cluster: Cluster) -> str:
    return cluster.call("scontrol", "show", "jobs", "-o")


def test_preparations_and_the_settings_of_a_site(cluster: Cluster) -> None:
    sweep = Sweep(cluster, "prepared")
    scratch = cluster.conf.parent / "scratch"
    module = {"BASH_FUNC_module%%": '() { echo "module $*"; [ "$2" != gone ]; }'}
    cluster.env |= module
    another = cluster.folder / "another"
    another.write_text(f'#!/bin/sh\necho another python\nexec {sys.executable} "$@"\n')
    another.chmod(0o755)
    said = cluster.hydratune(
        *cluster.slurm, "hydra.sweep.dir=prepared", "data.validation_share=0.0001,0.3", "seed=1,2", "trainer.max_steps=2",
        "hydra.launcher.wait=true", "hydra.launcher.array_parallelism=1", "hydra.launcher.modules=[cuda/12]",
        "hydra.launcher.setup=['export SITE=ours']", "hydra.launcher.prepare={gpus_per_node:0,comment:cpu}",
        f"hydra.launcher.scratch={scratch}/$SITE", f"hydra.launcher.python={another}",
        "hydra.launcher.container=[sh,-c,'echo contained $SITE in $TMPDIR; exec \"$@\"',sh]", status=3,
    )  # fmt: skip
    assert re.findall(r"(\w+): Slurm's job \d+, (\d)", said) == [("preparation", "1"), ("jobs", "2")] * 2
    assert [sweep.state(number) for number in range(4)] == ["failed", "failed", "done", "done"]
    cause = "No row is left to validate on, of 24: set a larger data.validation_share"
    assert sweep.record(0).cause.startswith(cause)
    assert sweep.record(1).cause.startswith(f"its rows could not be prepared (job 0): {cause}")
    assert (
        f"job 1 (data.validation_share=0.0001 seed=2) failed: its rows could not be prepared (job 0): {cause}" in said
    )
    assert "prepare" in sweep.screen(0) and not sweep.screen(1)
    for number in (2, 3):
        said = sweep.screen(number)
        assert "module load cuda/12\n" in said and f"contained ours in {scratch}/ours\n" in said
    assert sweep.record(3).started > sweep.record(2).ended or sweep.record(2).started > sweep.record(3).ended
    script = (sweep.root / "slurm" / "0-prepare.sh").read_text()
    assert "#SBATCH --gpus-per-node=0\n" in script and "#SBATCH --comment=cpu\n" in script
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--severity=warning", sweep.root / "slurm" / "1.sh"],
        env=cluster.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert not cluster.queue()


def test_what_was_submitted_is_what_runs(cluster: Cluster) -> None:
    git = ["git", "-C", str(cluster.folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    (cluster.folder / "mine.py").write_text("A = 1\n")
    cluster.call("git", "init", "-q", str(cluster.folder))
    cluster.call(*git, "add", "mine.py")
    cluster.call(*git, "commit", "-qm", "first")
    (cluster.folder / "new.py").write_text("B = 1\n")  # which git doesn't know
    held = [*cluster.slurm, "seed=1", "trainer.max_steps=1", "+hydra.launcher.sbatch.hold=true"]
    for strict in ("true", "false"):
        cluster.hydratune(*held, f"hydra.sweep.dir=strict_{strict}", f"hydra.launcher.strict_code={strict}")
    (cluster.folder / "mine.py").write_text("A = 2\n")
    cluster.call("scontrol", "release", *cluster.queue())
    strict, lenient = Sweep(cluster, "strict_true"), Sweep(cluster, "strict_false")
    strict.wait_for("failed", 0)
    lenient.wait_for("done", 0)
    differs = (
        r"the code is not what was submitted: working directory was commit (\w{8}) with changes \w{8} and is commit \1 with "
        r"changes \w{8}"
    )
    assert any("+B = 1" in path.read_text() for path in (strict.root / "slurm").glob("*.diff"))
    assert re.search(differs + r"\.\n", lenient.screen(0)), lenient.screen(0)
    assert re.fullmatch(differs + "; strict_code=true refuses that: .*", strict.record(0).cause)
    assert not (strict.root / "0" / "prepared.json").exists()


TIME = ["sbatch.partition=short", "sbatch.time=10:00"]
ACCOUNT = ["sbatch.partition=theirs", "sbatch.account=poor"]
REFUSED: list[tuple[list[str], str]] = [
    (["sbatch.partition=gone"], "invalid partition specified: gone"),
    (["sbatch.gpus_per_node=9"], "Requested node configuration is not available"),
    (["sbatch.partiton=batch"], "unrecognized option '--partiton=batch' (did you mean partition?)"),
    (["prepare={partition:gone}"], "invalid partition specified: gone"),
    (["sbatch.array=0-3"], "hydra.launcher.sbatch.array belongs to hydra.launcher.array_parallelism: leave it out"),
    (["max_requeues=-1"], "hydra.launcher.max_requeues is 0 or more, found -1"),
    (["n_jobs=2"], "n_jobs"),
    (["sbatch.signal=B:USR1@60"], "signal=B:USR1@60 is for the batch shell alone, and would end the job there: set it to USR1@60"),
    (["sbatch.clusters=all"], "hydra.launcher.sbatch.clusters belongs to the machine that this is typed on: leave it out"),
    # which Slurm takes, and lets wait for ever, where it is not told to EnforcePartLimits
    (TIME, "Slurm would let the jobs wait for ever, and nothing was submitted: time=10:00 is over the limit of partition "
           "short, 00:05:00."),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "said"), REFUSED)
def test_what_is_refused(typed: list[str], said: str, cluster: Cluster) -> None:
    before = sorted(cluster.folder.rglob("*"))
    words = [f"++hydra.launcher.{word}" if word.startswith("sbatch") else f"hydra.launcher.{word}" for word in typed]
    text = cluster.hydratune(*cluster.slurm, "hydra.sweep.dir=refused", "seed=1,2", *words, status=2)
    assert said in text and len(text.splitlines()) == 1 and text.startswith("hydratune: "), text
    assert sorted(cluster.folder.rglob("*")) == before and not cluster.queue()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["sbatch.partition='short,batch'", "sbatch.time=10:00"], ""),
        (
            ACCOUNT,
            "Slurm may let the jobs wait for ever: partition theirs takes no account=poor (AllowAccounts=rich)\n",
        ),
        (
            [*TIME, "sbatch.qos=long"],
            "Slurm may let the jobs wait for ever: time=10:00 is over the limit of partition short",
        ),
    ],
)
def test_what_may_be_started_is_submitted(typed: list[str], said: str, cluster: Cluster) -> None:
    words = [f"hydra.launcher.{word}" for word in typed]
    held = ["+hydra.launcher.sbatch.hold=true", f"hydra.sweep.dir=doubtful_{len(''.join(typed))}", "seed=1"]
    text = cluster.hydratune(*cluster.slurm, *words, *held)
    assert "1 of 1 jobs submitted" in text and said in text and ("wait for ever" in text) == bool(said)
    cluster.call("scancel", *cluster.queue())


def test_a_site_that_enforces_its_limits_says_it_itself(cluster: Cluster) -> None:
    cluster.configure(EnforcePartLimits="ALL")
    try:
        test_what_is_refused(TIME, "Requested time limit is invalid", cluster)
        test_what_is_refused(ACCOUNT, "Invalid account or account/partition combination", cluster)
    finally:
        cluster.configure(EnforcePartLimits="NO")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1800), ("30:15", 1815), ("01:30:15", 5415), ("1-2", 93600), ("1-2:30", 95400), ("1-00:00:01", 86401),
        ("0", float("inf")), ("UNLIMITED", float("inf")),
    ],
)  # fmt: skip
def test_a_time_as_slurm_writes_it(time: str, seconds: float) -> None:
    assert slurm_limits.seconds(time) == seconds


def test_no_sbatch_and_half_a_submission(cluster: Cluster) -> None:
    typed = [*cluster.slurm, "hydra.sweep.dir=half", "seed=1,2,3,4", "+hydra.launcher.sbatch.hold=true"]
    path = cluster.env["PATH"]
    cluster.env["PATH"] = str(cluster.folder)
    try:
        assert "There is no sbatch here" in cluster.hydratune(*typed, status=2)
    finally:
        cluster.env["PATH"] = path
    # one that is refused the second array
    full = cluster.folder / "full" / "sbatch"
    full.parent.mkdir()
    refuses = "echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy' >&2; exit 1"
    full.write_text(
        f'#!/bin/bash\n[[ $* != *half/slurm/1.sh* ]] || {{ {refuses}; }}\nexec {shutil.which("sbatch")} "$@"\n'
    )
    full.chmod(0o755)
    cluster.env["PATH"] = f"{full.parent}:{path}"
    try:
        said = cluster.hydratune(*typed, status=2)
    finally:
        cluster.env["PATH"] = path
    found = re.search(r"Job violates accounting/QOS policy. (scancel \d+) ends what was submitted.", said)
    assert found, said
    assert len(cluster.queue()) == 3
    cluster.call(*found[1].split())
    assert not cluster.queue()
    # one that has submitted, and hears nothing of it
    full.write_text(
        f'#!/bin/bash\n{shutil.which("sbatch")} "$@" || exit\n[[ $* == *--test-only* ]] || {{\n'
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1; }\n"
    )
    cluster.env["PATH"] = f"{full.parent}:{path}"
    try:
        said = cluster.hydratune(*typed, status=2)
    finally:
        cluster.env["PATH"] = path
    assert re.search(r"Socket timed out on send/recv operation. scancel \d+ ends what was submitted.", said), said
    assert "4 jobs, 1 waiting, 3 queued" in _status(cluster, Sweep(cluster, "half"))
    assert "1 of 4 jobs submitted" in cluster.hydratune("sweep", "resume", "half")
    cluster.call("scancel", *cluster.queue())


def test_a_scheduler_that_is_away_or_full(cluster: Cluster) -> None:
    """Nodes that are drained take no job now, and jobs may wait for them; squeue may fail for a moment."""
    cluster.configure(SchedulerParameters="bf_interval=2,sched_interval=2,max_array_tasks=2")
    cluster.call("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=maintenance")
    try:
        said = cluster.hydratune(*cluster.slurm, "hydra.sweep.dir=later", "seed=1,2,3", "trainer.max_steps=1")
        assert re.findall(r"Slurm's job \d+, (\d)", said) == ["2", "1"]
        assert len(cluster.queue()) == 3
        for name, value in (("SQUEUE_STATES", "R"), ("SLURM_CLUSTERS", "local")):  # which change what squeue says
            with patch.dict(cluster.env, {name: value}):
                assert "all done, cancelled, or in Slurm's queue" in cluster.hydratune("sweep", "resume", "later")
        stub = cluster.folder / "away" / "squeue"
        stub.parent.mkdir()
        stub.write_text("#!/bin/bash\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
        stub.chmod(0o755)
        with patch.dict(cluster.env, {"PATH": f"{stub.parent}:{cluster.env['PATH']}"}):
            status = cluster.hydratune("sweep", "status", "later")
            assert "3 jobs, 3 waiting" in status and "Unable to contact slurm controller" in status, status
            assert "squeue says nothing of the jobs" in cluster.hydratune("sweep", "resume", "later", status=2)
        cluster.hydratune("sweep", "cancel", "later")
        assert not cluster.queue()
    finally:
        cluster.call("scontrol", "update", "nodename=n[1-2]", "state=resume")
        cluster.configure(SchedulerParameters="bf_interval=2,sched_interval=2")


def test_settings_from_the_environment_and_on_resume(cluster: Cluster) -> None:
    """What an allocation that this is typed in has set, and defaults of a profile, are no settings of the jobs."""
    stray = {
        "SLURM_MEM_PER_CPU": "100", "SLURM_JOB_ID": "1", "SBATCH_TIMELIMIT": "3", "SBATCH_PARTITION": "urgent",
        "SBATCH_SIGNAL": "B:USR2@60", "SBATCH_NO_REQUEUE": "1",
    }  # fmt: skip
    sweep, held = Sweep(cluster, "stray"), "+hydra.launcher.sbatch.hold=true"
    with patch.dict(cluster.env, stray):
        cluster.hydratune(
            *cluster.slurm, "hydra.sweep.dir=stray", "seed=1,2,3", "trainer.max_steps=1", "hydra.launcher.sbatch.mem=200M",
            "+hydra.launcher.sbatch.export=NONE", "hydra.launcher.array_parallelism=1", held,
        )  # fmt: skip
    job = cluster.call("scontrol", "show", "job", "-o", cluster.tasks()[0])
    assert "Partition=urgent" in job and "TimeLimit=04:00:00" in job and "Requeue=1" in job, job
    cluster.hydratune("sweep", "cancel", "stray")
    assert not cluster.queue()
    said = cluster.hydratune("sweep", "resume", "stray", "1", "hydra.launcher.sbatch.time=20:00", held)
    assert "1 of 1 jobs submitted" in said
    cluster.hydratune("sweep", "resume", "stray", "2", "hydra.launcher.sbatch.hold=null")
    config = (sweep.root / "1" / "config.yaml").read_text()
    allowed = cluster.hydratune(
        *cluster.slurm, "hydra.sweep.dir=stray", "seed=1,2,3", "trainer.max_steps=1", "benchmark.limit=7"
    )
    assert "2 of the jobs are at work or in Slurm's queue with other settings, which they keep: " in allowed
    assert (sweep.root / "1" / "config.yaml").read_text() == config and "limit: 7" not in config
    listed = [json.loads(line)["words"] for line in (sweep.root / "jobs.jsonl").read_text().splitlines()]
    assert ["benchmark.limit=7" in words for words in listed] == [True, False, False]
    jobs = [cluster.call("scontrol", "show", "job", "-o", name) for name in cluster.tasks()]
    assert "TimeLimit=00:20:00" in jobs[0] and "MinMemoryNode=200M" in jobs[0], jobs[0]
    assert "Dependency=afterany:" in jobs[1], "two at a time"
    status = _status(cluster, sweep)
    assert "2 queued, 1 cancelled" in status, status
    cluster.call("scontrol", "release", cluster.tasks()[0])
    sweep.wait_for("done", 1, 2)
    assert sweep.state(0) == "waiting" and "1 cancelled" in _status(cluster, sweep)


def test_a_preparation_is_for_others_too(cluster: Cluster) -> None:
    """Of a job that is cancelled meanwhile; and what ends in the lines of a site has a cause."""
    sweep = Sweep(cluster, "first_cancelled")
    typed = ["hydra.sweep.dir=first_cancelled", "seed=1,2", "trainer.max_steps=1"]
    cluster.hydratune(*cluster.slurm, *typed, "hydra.launcher.prepare={gpus_per_node:0,hold:true}")
    assert "preparation for job 0 and others pending (JobHeldUser)" in _status(cluster, sweep)
    cluster.hydratune("sweep", "cancel", "first_cancelled", "0")
    cluster.call("scontrol", "release", cluster.tasks()[0])
    sweep.wait_for("done", 1)
    assert "1 done, 1 cancelled" in _status(cluster, sweep)
    # it has prepared, and not trained
    cluster.hydratune("sweep", "resume", "first_cancelled", "hydra.launcher.prepare=null")
    sweep.wait_for("done", 0)
    assert sweep.steps(0) == [1]
    for number, lines in enumerate(("'[ -d /nowhere ] || exit 4'", "'set -eu','cat /nowhere'", "'(exit 255)'")):
        cluster.hydratune(
            *cluster.slurm, f"hydra.sweep.dir=setup_{number}", "seed=1", f"hydra.launcher.setup=[{lines}]"
        )
        Sweep(cluster, f"setup_{number}").wait_for("failed", 0)
    assert Sweep(cluster, "setup_0").record(0).cause == "it ended with exit status 4"
    assert Sweep(cluster, "setup_2").record(0).cause == "it ended with exit status 255"
    assert Sweep(cluster, "setup_1").record(0).cause == "cat: /nowhere: No such file or directory"


SRUN = """#!/bin/bash
echo x >>{folder}/tried
(($(wc -l <{folder}/tried) > {fails})) || {{
    echo 'srun: error: Unable to confirm allocation for job 7: Unable to contact slurm controller (connect failure)' >&2
    exit 1
}}
exec {srun} "$@"
"""
SCONTROL = """#!/bin/bash
[[ $1 != requeue || -e {folder}/asked ]] || {{
    touch {folder}/asked
    echo 'Unable to contact slurm controller (connect failure)' >&2
    exit 1
}}
exec {scontrol} "$@"
"""


def test_a_controller_that_is_away_for_a_moment(cluster: Cluster) -> None:
    """When a job begins, and when it asks to be started again; one that it stays away from has failed."""
    for name, fails in (("once", 1), ("always", 9)):
        folder = cluster.folder / f"stubs_{name}"
        folder.mkdir()
        for command, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            stub = folder / command
            stub.write_text(text.format(folder=folder, fails=fails, **{command: shutil.which(command)}))
            stub.chmod(0o755)
        lines = f"['export PATH={folder}:$PATH','until [ -e {cluster.folder}/seen ]; do sleep 0.1; done']"
        typed = [f"hydra.sweep.dir={name}", "seed=1", "trainer.max_steps=1", f"hydra.launcher.setup={lines}"]
        cluster.hydratune(*cluster.slurm, *typed)
    once, always = Sweep(cluster, "once"), Sweep(cluster, "always")
    wait_until("it is starting", lambda: "job 0 starting, on n" in _status(cluster, once))
    assert "job 0 starting, " in cluster.hydratune("sweep", "logs", "once")
    (cluster.folder / "seen").touch()
    once.wait_for("done", 0)
    assert "start 2" in once.screen(0) and "start 3" not in once.screen(0)
    always.wait_for("failed", 0)
    assert re.fullmatch(
        r"it died without a word \(srun: error: Unable to confirm allocation .*\) after step \S+, as before: another start would "
        "meet the same",
        always.record(0).cause,
    )
    assert "start 2" in always.screen(0)


def test_a_preparation_is_one_process() -> None:
    given = {"nodes": 2, "ntasks_per_node": 8, "gres": "gpu:8,lscratch:100", "mem": "9G", "gpus_per_node": 8}
    slurm = Slurm(sbatch=given, prepare={"partition": "cpu"})
    assert slurm.options(prepares=False) == given
    one = {"nodes": 1, "ntasks_per_node": 1, "gres": "lscratch:100", "mem": "9G", "partition": "cpu"}
    assert slurm.options(prepares=True) == one


def test_a_job_of_two_nodes(cluster: Cluster) -> None:
    """Two processes, each with half of the rows, train as one with all."""
    (cluster.folder / "reads.py").write_text(READS)
    typed = [
        *cluster.run, "lora=all_linear", "lora.lora_dropout=0", "trainer.max_steps=5", "seed=1",
        "trainer.learning_rate=1e-3", "trainer.callbacks=[reads:Reads]",
    ]  # fmt: skip
    cluster.hydratune(
        "-m", "hydra/launcher=slurm_multinode", "hydra.launcher.sbatch.ntasks_per_node=1", *typed,
        "hydra.launcher.sbatch.gpus_per_node=1", "hydra.launcher.sbatch.cpus_per_task=1", "hydra.sweep.dir=two",
        "trainer.per_device_train_batch_size=2",
    )  # fmt: skip
    cluster.hydratune(*cluster.slurm, *typed, "hydra.sweep.dir=one", "trainer.per_device_train_batch_size=4")
    two, one = Sweep(cluster, "two"), Sweep(cluster, "one")
    two.wait_for("done", 0)
    one.wait_for("done", 0)
    receipt = json.loads((two.root / "0" / "receipts" / "train.json").read_text())
    assert receipt["hardware"]["world_size"] == 2
    first, second, all_rows = (
        re.findall(r"number (\d+)\?", (cluster.folder / name).read_text())
        for name in ("read-2-0.txt", "read-2-1.txt", "read-1-0.txt")
    )
    assert len({*first}) == len({*second}) == 10 and not {*first} & {*second}
    for step in range(5):
        two_rows, four_rows = slice(2 * step, 2 * step + 2), slice(4 * step, 4 * step + 4)
        assert {*first[two_rows], *second[two_rows]} == {*all_rows[four_rows]}
    losses = [
        [json.loads(line)["loss"] for line in (sweep.root / "0" / "train_log.jsonl").read_text().splitlines()]
        for sweep in (one, two)
    ]
    assert len(losses[0]) == 5 and losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_waiting_at_a_terminal(cluster: Cluster) -> None:
    """Has a table that changes."""
    mine, theirs = pty.openpty()
    typed = [*cluster.slurm, "seed=1", "trainer.max_steps=1", "hydra.sweep.dir=watched", "hydra.launcher.wait=true"]
    command = cluster.command(*typed, "+hydra.launcher.sbatch.hold=true")
    watching = subprocess.Popen(command, cwd=cluster.folder, env=cluster.env, stdout=theirs)
    os.close(theirs)
    seen, held = b"", True
    with suppress(OSError):  # by which a terminal ends
        while more := os.read(mine, 1024):
            seen += more
            if held and seen.count(b"queued, pending") > 1:  # in two tables
                cluster.call("scontrol", "release", *cluster.queue())
                held = False
    assert watching.wait() == 0
    tables = re.split(r"\x1b\[\d+F\x1b\[J", seen.decode().replace("\r", ""))
    assert len(tables) > 2 and "queued, pending" in tables[0] and "Ctrl-C leaves them to Slurm" in tables[0]
    assert tables[-1].startswith("watched: 1 job, 1 done\nbest so far: job 0: train/loss "), tables


def test_a_search(cluster: Cluster) -> None:
    """Which waits for the jobs of each of its rounds."""
    typed = [
        *cluster.slurm, "hydra.sweep.dir=search", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.direction=minimize", "hydra.sweeper.sampler.seed=1",
        "trainer.learning_rate=tag(log,interval(1e-4,1e-1))", "trainer.max_steps=1",
    ]  # fmt: skip
    command = cluster.command(*typed)  # in a process of its own, since optuna keeps the screen of its first call
    done = subprocess.run(command, cwd=cluster.folder, env=cluster.env, capture_output=True, text=True)
    assert done.returncode == 2
    said = "hydratune: a search needs what its jobs have found before it goes on: set hydra.launcher.wait=true.\n"
    assert done.stderr.endswith(said)
    subprocess.run([*command, "hydra.launcher.wait=true"], cwd=cluster.folder, env=cluster.env, check=True)
    found = yaml.safe_load((cluster.folder / "search/optimization_results.yaml").read_text())
    values = [Sweep(cluster, "search").record(number).value for number in range(2)]
    assert found["best_value"] == min(values)
