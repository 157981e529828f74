"""A sweep that is killed again and again, alone or with its jobs, ends as one that never was: none lost, none done twice."""

import os
import random
import signal
import time

import pytest
from warm import Place, Started, kill_all, until

SEED, JOBS, STEPS = 0, 12, 6
# what is waited for, and whether the jobs are killed, too
KILLS = [
    ("registration", True),
    *[("start", True)] * 3,
    *[("start", False)] * 3,
    *[("step", True)] * 6,
    *[("step", False)] * 2,
    *[("end", True)] * 5,
]
TYPED = [
    "-m", f"seed={','.join(map(str, range(JOBS)))}", f"trainer.max_steps={STEPS}", "trainer.save_steps=1",
    "lora.lora_dropout=0.1", "hydra.launcher.n_jobs=2",
]  # fmt: skip


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(place: Place) -> None:
    dice, kinds = random.Random(SEED), KILLS[3:]
    print(f"seed {SEED}")  # shown where the test fails
    dice.shuffle(kinds)
    met = 0  # kills that met a job at work
    for kind, with_jobs in [*KILLS[:3], *kinds]:  # the first while it is written down
        process = place.start(*TYPED, "hydra.sweep.dir=killed")
        wait_for(kind, process, place, dice)
        if process.poll() is None:
            if with_jobs:
                kill_all(process.pid)
            else:
                process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # all was done
            continue
        assert process.returncode == -signal.SIGKILL, process.said
        states = place.states(JOBS, "killed")
        met += "running" in states
        print(f"{kind}{' with jobs' * with_jobs}: {states}")
    assert met >= 8
    last = place.call(*TYPED, "hydra.sweep.dir=killed")
    assert last.returncode == 0, last.said
    assert place.states(JOBS, "killed") == ["done"] * JOBS
    assert sorted(os.listdir(place.folder / "killed")) == sorted(
        [*map(str, range(JOBS)), ".lock", "jobs.jsonl", "sweep.json"]
    )

    whole = place.call(*TYPED, "hydra.sweep.dir=whole")
    assert whole.returncode == 0, whole.said
    for job in range(JOBS):
        assert place.steps(job, "killed") == list(range(1, STEPS + 1)) == place.steps(job, "whole")
        assert place.adapter(f"killed/{job}") == place.adapter(f"whole/{job}")
        assert place.record(job, "killed")["value"] == place.record(job, "whole")["value"]
        assert (place.folder / f"killed/{job}/screen.log").read_text().count("train     done in") <= 1
    assert len({place.adapter(f"whole/{job}") for job in range(JOBS)}) == JOBS


def wait_for(kind: str, process: Started, place: Place, dice: random.Random) -> None:
    """The middle of registration, a moment after the start, after some steps, or after a job's end; or the end of all."""

    def done() -> int:
        return place.states(JOBS, "killed").count("done")

    def steps() -> int:
        return sum(len(place.steps(job, "killed")) for job in range(JOBS))

    if kind == "start":
        return time.sleep(dice.uniform(0, 1.5))  # the checks, registration, or the start of the first jobs
    if kind == "registration":
        return until((place.folder / "killed" / str(dice.randint(0, JOBS // 2))).exists)
    measure, least = (steps, dice.randint(1, 4)) if kind == "step" else (done, 1)
    before = measure()
    while measure() < before + least and process.poll() is None:
        time.sleep(0.01)
    time.sleep(dice.uniform(0, 0.1))
