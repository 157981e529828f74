"""A sweep ends, and says how: jobs that hang are killed, a search counts its failures, and callers may be odd."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from warm import Place, Started, until

# as a loader's worker that waits for ever: it is in the job's group, and would keep the job's lock
WORKER = """
import subprocess, sys
from pathlib import Path
from transformers import TrainerCallback


class Worker(TrainerCallback):
    def on_train_begin(self, args, state, control, **more):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(f"worker-{args.seed}").write_text(str(process.pid))

    def on_step_begin(self, args, state, control, **more):
        if state.global_step == 1:  # where the other one hangs, which comes next
            Path(f"hangs-{args.seed}").touch()
"""
TYPED = ["-m", "hydra.sweep.dir=sweep", "trainer.max_steps=4", "trainer.callbacks=[worker:Worker,mine:Mine]"]
LATE = "did not end within 0.05 minutes (hydra.launcher.grace_min)"
SOON = "hydra.launcher.grace_min=0.05"


@pytest.fixture
def hanging(place: Place) -> Place:
    (place.folder / "worker.py").write_text(WORKER)
    return place


def hung(place: Place, *words: str, seeds: str = "1", **more: str) -> Started:
    """A sweep whose first job hangs after its first step."""
    process = place.start(*TYPED, f"seed={seeds}", *words, SEED_1="hung 1", **more)
    wait_for_the_hang(place, process)
    return process


def wait_for_the_hang(place: Place, process: Started) -> None:
    hangs = place.folder / "hangs-1"
    until(lambda: hangs.exists() or process.poll() is not None)
    assert process.poll() is None, process.said
    hangs.unlink()


def nothing_lives(place: Place, seed: int = 1) -> bool:
    """Whether the job and its worker have ended; one that nobody has asked how it ended has no words left."""
    words = Path(f"/proc/{(place.folder / f'worker-{seed}').read_text()}/cmdline")

    def is_at_work() -> bool:
        try:
            return "time.sleep(600)" in words.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False

    until(lambda: not is_at_work())
    return not place.lives(0)


@pytest.mark.slow
def test_a_time_limit_ends_a_job_that_hangs(hanging: Place) -> None:
    process = hanging.start(*TYPED, "seed=1,2", "hydra.launcher.timeout_min=0.1", SOON, SEED_1="hung 1")
    # the limit counts from the job's start: who looks at the clock stands still until the job has come to its training
    until(lambda: hanging.record(0) or process.poll() is not None)
    process.send_signal(signal.SIGSTOP)
    wait_for_the_hang(hanging, process)
    hanging.sweep("cancel", "sweep", "1")
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 3, process.said
    record = hanging.record(0)
    cause = f"it took longer than hydra.launcher.timeout_min=0.1 and {LATE}; its last checkpoint goes on"
    assert (record["state"], record["cause"]) == ("failed", cause)
    assert cause in process.stdout
    assert nothing_lives(hanging)
    resumed = hanging.sweep("resume", "sweep", "0", "trust=true", "hydra.launcher.timeout_min=null")
    assert resumed.returncode == 0, resumed.said
    assert hanging.steps(0) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_time_limit_before_a_job_has_begun(place: Place) -> None:
    done = place.call("-m", "hydra.sweep.dir=sweep", "seed=1", "hydra.launcher.timeout_min=1e-6")
    assert done.returncode == 3, done.said
    assert place.record(0)["cause"].startswith("it took longer than hydra.launcher.timeout_min=1e-06; ")
    assert place.record(0)["attempt"] == 1


@pytest.mark.slow
def test_a_cancelled_job_that_hangs(hanging: Place) -> None:
    process = hung(hanging, SOON)
    assert "1 at work save their state and end" in hanging.sweep("cancel", "sweep").stdout
    assert process.wait() == 143, process.said
    record = hanging.record(0)
    said = f"it was asked to end and {LATE}: its last checkpoint goes on"
    assert (record["state"], record["cause"]) == ("interrupted", said)
    assert nothing_lives(hanging)
    assert "1 cancelled" in hanging.sweep("status", "sweep").stdout


@pytest.mark.slow
def test_asked_to_stop_once_and_twice(hanging: Place) -> None:
    process = hung(hanging, SOON)
    for _ in range(2):  # as `timeout` does, to a process and to its group
        process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, process.said
    assert LATE in process.stdout and "1 of 1 jobs are not done" in process.stdout
    assert nothing_lives(hanging)

    process = hung(hanging)  # for 10 minutes, where nobody asks again
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait() == 130, process.said
    assert time.monotonic() - began < 120
    assert hanging.record(0)["cause"] == "it was ended before it had saved its state: its last checkpoint goes on"
    assert nothing_lives(hanging)


SEARCH = [
    "-m", "hydra.sweep.dir=sweep", "hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_jobs=1",
    "hydra.sweeper.n_trials=3", "trainer.learning_rate=interval(0.0001,0.1)",
]  # fmt: skip
ON = "hydra.sweeper.max_failure_rate=1.0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said", "jobs"),
    [
        (
            [],
            "1 job of the search failed, and its sweeper stopped: job 0 (trainer.learning_rate=0.0417852005) failed: "
            "ValueError: a mistake of mine.",
            1,
        ),
        ([ON, "hydra.launcher.max_failures=2"], "2 jobs of the search failed, and no other begins (hydra.launcher.max_failures=2).", 2),
        ([ON], "3 jobs of the search failed, and its sweeper stopped: ValueError: No trials are completed yet.", 3),
    ],
)  # fmt: skip
def test_a_search_whose_jobs_fail(words: list[str], said: str, jobs: int, place: Place) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = place.call(*SEARCH, *words, EACH="mistake")
    assert done.returncode == 3, done.said
    told = [line for line in done.stderr.splitlines() if line.startswith("hydratune: ")]
    assert [line[:60] for line in told] == [f"hydratune: {said}"[:60]] and told[0][-30:] == said[-30:], done.stderr
    assert "Traceback" not in done.stderr
    assert place.states(4) == ["failed"] * jobs + ["waiting"] * (4 - jobs)


@pytest.mark.slow
def test_a_search_that_goes_on_without_a_job(place: Place) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    typed = [*SEARCH[:-1], "seed=range(1,9)", ON]
    done = place.call(*typed, **{f"SEED_{seed}": "mistake" for seed in (1, 3, 5, 7)})
    states = place.states(3)
    assert set(states) == {"done", "failed"}, done.said  # what sampler.seed=1 chooses
    assert done.returncode == 3, done.said
    assert f"{states.count('failed')} job" in done.stderr and "whose values its sweeper went without" in done.stderr
    assert "best_value" in yaml.safe_load((place.folder / "sweep/optimization_results.yaml").read_text())
    assert place.call(*typed).returncode == 0


@pytest.mark.slow
def test_a_search_submits_twins_once(place: Place) -> None:
    """With programs that say what Slurm's do where they take all, and have done nothing of it."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    programs = place.folder / "bin"
    programs.mkdir()
    for name, does in (
        ("sbatch", 'case "$1" in --parsable) echo 7;; esac'),
        *((n, ":") for n in ("squeue", "scontrol")),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    done = place.call(
        *SEARCH[:-1], "lora.r=choice(4)", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2",
        "hydra/launcher=slurm_1gpu", "hydra.launcher.wait=true", PATH=f"{programs}:{os.environ['PATH']}",
    )  # fmt: skip
    assert (place.folder / "sweep/slurm/0.jobs").read_text() == "0\tprepare,train\n", done.said
    assert "jobs: Slurm's job 7, 1 task\n" in done.stdout
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.said


@pytest.mark.slow
def test_names_of_gpus_with_spaces(place: Place) -> None:
    done = place.call(
        "-m", "hydra.sweep.dir=sweep", "seed=1,2", "trainer.max_steps=1", CUDA_VISIBLE_DEVICES=" 7, 9 ", EACH="slow"
    )
    assert done.returncode == 0, done.said
    seen = {json.loads((place.folder / f"seen-{seed}.json").read_text())["gpu"] for seed in (1, 2)}
    assert seen == {"7", "9"}
    locks = {path.name.rpartition("-")[2] for path in (place.folder / "sweep").glob(".gpu-*")}
    assert locks == {"7", "9"}


@pytest.mark.slow
def test_a_caller_that_ignores_the_ends_of_children(place: Place, environment: dict[str, str]) -> None:
    typed = [*place.words[:-1], "stages=[prepare]", "-m", "hydra.sweep.dir=sweep", "seed=1"]
    command = ["env", "--ignore-signal=CHLD", sys.executable, "-m", "hydratune", *typed]
    done = subprocess.run(command, cwd=place.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert place.states(1) == ["done"]
