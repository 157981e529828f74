"""Two processes that were started for one sweep share its jobs, and one of them is enough to end it."""

import os
import signal

import pytest
from warm import Place, Started, kill_all, until

TYPED = ["-m", "hydra.sweep.dir=sweep", "seed=1,2,3", "trainer.max_steps=4", "trainer.save_steps=1"]


def started(place: Place) -> list[Started]:
    """Two processes with a job each, which waits after its first step."""
    both = [place.start(*TYPED, EACH="held 1") for _ in range(2)]
    until(lambda: place.steps(0) and place.steps(1), lambda: both[0].said + both[1].said)
    return both


@pytest.mark.slow
def test_two_share_the_jobs(place: Place) -> None:
    both = started(place)
    (place.folder / "go").touch()
    assert [one.wait() for one in both] == [0, 0], both[0].said + both[1].said
    assert place.states(3) == ["done"] * 3
    assert [place.record(number)["attempt"] for number in range(3)] == [1] * 3
    assert [place.steps(number) for number in range(3)] == [[1, 2, 3, 4]] * 3
    done = [
        one.stdout.count(" done in") - one.stdout.count("prepare   done in") - one.stdout.count("train     done in")
        for one in both
    ]
    assert sum(done) == 3 and min(done) >= 1
    assert len((place.folder / "sweep/jobs.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("with_its_job", [False, True])
def test_one_is_killed(with_its_job: bool, place: Place) -> None:
    both = started(place)
    if with_its_job:
        kill_all(both[0].pid)
    else:
        os.kill(both[0].pid, signal.SIGKILL)
    (place.folder / "go").touch()
    assert both[1].wait() == 0, both[1].said
    assert both[0].wait() == -signal.SIGKILL
    assert place.states(3) == ["done"] * 3
    assert sorted(place.record(number)["attempt"] for number in range(3)) == [1, 1, 2 if with_its_job else 1]
    assert [place.steps(number) for number in range(3)] == [[1, 2, 3, 4]] * 3
