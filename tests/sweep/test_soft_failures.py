"""A job that fails says why, and stops no other; the same command does it again, and only it."""

import re
import signal
from pathlib import Path

import pytest
from warm import Place, until

FAILING = {  # by the seed: what the callback does, and the cause that is told
    2: ("memory", r"This run does not fit into memory \(.*can't allocate memory"),
    3: (
        "gpu memory",
        r"This run does not fit into the GPU's memory \(CUDA out of memory\. Tried to allocate 20\.00 MiB\): ",
    ),
    4: ("nan", "(?i).*nan"),
    5: ("mistake", "ValueError: a mistake of mine"),
    6: ("kill", "killed by SIGKILL, as the system does when the memory runs out"),
    7: ("", r"No row is left to validate on, of 24: set a larger data\.validation_share"),
}
SEEDS = [2, 1, 3, 4, 5, 6, 7, 8]
TYPED = [
    "-m", "hydra.sweep.dir=sweep", f"seed={','.join(map(str, SEEDS))}", "sweep.zip=[seed,data.validation_share]",
    f"data.validation_share={','.join('0.0001' if seed == 7 else '0.3' for seed in SEEDS)}", "hydra.launcher.n_jobs=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def failed(shared_place: Place) -> Place:
    """A sweep with a failure of each kind."""
    done = shared_place.call(*TYPED, **{f"SEED_{seed}": what for seed, (what, _) in FAILING.items() if what})
    assert done.returncode == 3, done.said
    assert "6 of 8 jobs failed: job 0 (seed=2 data.validation_share=0.3), job 2 " in done.stdout
    return shared_place


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_record_says_why(seed: int, failed: Place) -> None:
    record = failed.record(SEEDS.index(seed))
    assert (record["state"], record["attempt"]) == ("failed" if seed in FAILING else "done", 1)
    assert record["ended"] >= record["started"] and record["seconds"] > 0
    if seed in FAILING:
        assert re.match(FAILING[seed][1], record["cause"]), record["cause"]
        assert record["value"] is None
    else:
        assert record["cause"] is None
        assert record["objective"] == "train/validation_loss" and record["value"] > 0


@pytest.mark.slow
def test_status_and_logs_say_why(failed: Place) -> None:
    status, logs = failed.sweep("status", "sweep").stdout, failed.sweep("logs", "sweep").stdout
    assert status.startswith("sweep: 8 jobs, 2 done, 6 failed\n")
    assert "none is running" not in status
    for number, seed in enumerate(SEEDS):
        label = f"job {number} (seed={seed} data.validation_share={'0.0001' if seed == 7 else '0.3'})"
        assert (f"  {label} failed (attempt 1): " in status) == (seed in FAILING)
        assert (f"{label} failed, sweep/{number}/screen.log:" in logs) == (seed in FAILING)
        assert not (failed.folder / f"sweep/{number}/adapter").exists() or seed not in FAILING
    for said in ("a mistake of mine", "CUDA out of memory", "No row is left to validate on"):
        assert said in status and said in logs


@pytest.mark.slow
def test_the_same_command_does_again_what_failed(failed: Place) -> None:
    """Last in this file: it changes the sweep."""
    before = failed.record(1)
    done = failed.call(*TYPED)
    assert done.returncode == 3, done.said
    assert "1 of 8 jobs failed: job 6 (seed=7 data.validation_share=0.0001)" in done.stdout
    assert [failed.record(number)["attempt"] for number in range(8)] == [1 if s in (1, 8) else 2 for s in SEEDS]
    assert failed.states(8) == ["failed" if seed == 7 else "done" for seed in SEEDS]
    assert failed.record(1) == before
    for number in range(8):
        assert failed.steps(number) == ([] if SEEDS[number] == 7 else [1, 2])


@pytest.mark.slow
def test_after_enough_failures_no_other_begins(place: Place) -> None:
    typed = ["-m", "hydra.sweep.dir=sweep", "seed=1,2,3", "hydra.launcher.max_failures=1"]
    done = place.call(*typed, SEED_1="mistake")
    assert done.returncode == 3, done.said
    assert place.states(3) == ["failed", "waiting", "waiting"]
    assert (
        "2 of 3 jobs are not done after 1 failures (hydra.launcher.max_failures): hydratune sweep resume sweep goes on"
        in done.stdout
    )
    assert place.call(*typed).returncode == 0
    assert place.states(3) == ["done"] * 3


@pytest.mark.slow
def test_a_time_limit(place: Place) -> None:
    typed = ["-m", "hydra.sweep.dir=sweep", "seed=1", "trainer.max_steps=60", "hydra.launcher.timeout_min=0.1"]
    done = place.start(*typed, SEED_1="held 1")
    # the limit counts from the job's start: who looks at the clock stands still until the job has something to save
    until(lambda: place.record(0), lambda: done.said)
    done.send_signal(signal.SIGSTOP)
    until(lambda: place.steps(0), lambda: done.said)
    done.send_signal(signal.SIGCONT)
    assert done.wait() == 3, done.said
    record, steps = place.record(0), place.steps(0)
    assert record["state"] == "failed"
    said = "it took longer than hydra.launcher.timeout_min=0.1; its state is saved, and resume goes on"
    assert record["cause"] == said and said in done.stdout
    saved = max(
        int(path.name.rpartition("-")[2]) for path in (place.folder / "sweep/0/checkpoints").glob("checkpoint-*")
    )
    assert 0 < saved < 60 and saved == steps[-1]
    resumed = place.sweep("resume", "sweep", "trust=true", "hydra.launcher.timeout_min=null")
    assert resumed.returncode == 0, resumed.said
    assert f"going on from checkpoint-{saved}" in Path(place.folder / "sweep/0/screen.log").read_text()
    assert place.steps(0) == list(range(1, 61))
    assert place.record(0)["attempt"] == 2 and place.record(0)["cause"] is None
