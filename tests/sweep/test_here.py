"""Jobs on this machine: a process each, N at a time, a GPU each; and results that tell nothing of how they were started."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from warm import Place

SEEDS = (1, 2, 3, 4)


@dataclass
class Watched:
    """A sweep of four jobs, two at a time, each with one of the GPUs 7 and 9."""

    place: Place
    memory: list[int] = field(default_factory=list)  # KiB of the sweep's process, again and again

    def overlapping(self) -> list[tuple[int, int]]:
        """Pairs of jobs that were at work at the same time."""
        times = {number: self.place.record(number) for number in range(len(SEEDS))}
        return [
            (one, two)
            for one, two in combinations(times, 2)
            if times[one]["started"] < times[two]["ended"] and times[two]["started"] < times[one]["ended"]
        ]

    def seen(self, number: int) -> dict[str, Any]:
        """What the callback of the job saw."""
        return json.loads((self.place.folder / f"seen-{SEEDS[number]}.json").read_text())


@pytest.fixture(scope="module")
def watched(shared_place: Place) -> Watched:
    found = Watched(shared_place)
    process = shared_place.start(
        "-m", "hydra.sweep.dir=sweep", "seed=1,2,3,4", "hydra.launcher.n_jobs=2", "hydra.launcher.start_method=fork",
        "trainer.save_steps=1", CUDA_VISIBLE_DEVICES="7,9", EACH="slow",
    )  # fmt: skip
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if "VmRSS:" in status and shared_place.record(0):
            found.memory.append(int(status.split("VmRSS:")[1].split()[0]))
    assert process.returncode == 0, process.said
    return found


@pytest.mark.slow
def test_jobs_overlap_and_share_no_gpu(watched: Watched) -> None:
    at_once = watched.overlapping()
    assert at_once, "no two jobs ran at the same time"
    gpus = [watched.seen(number)["gpu"] for number in range(len(SEEDS))]
    assert set(gpus) == {"7", "9"}
    assert all(gpus[one] != gpus[two] for one, two in at_once)


@pytest.mark.slow
def test_a_job_holds_the_lock_of_no_gpu_but_its_own(watched: Watched) -> None:
    for number in range(len(SEEDS)):
        seen = watched.seen(number)
        names = [Path(file).name for file in seen["files"]]
        mine = f".gpu-{os.uname().nodename}-"
        assert [name for name in names if name.startswith(mine)] == [f"{mine}{seen['gpu']}"]


@pytest.mark.slow
def test_memory_comes_back(watched: Watched) -> None:
    assert len(watched.memory) > 5
    assert max(watched.memory) - watched.memory[0] < 20 * 1024
    assert not any(watched.place.lives(number) for number in range(len(SEEDS)))


@pytest.mark.slow
def test_results_are_those_of_fresh_processes(watched: Watched) -> None:
    place = watched.place
    spawned = place.call(
        "-m", "hydra.sweep.dir=spawned", "seed=1,2", "hydra.launcher.start_method=spawn", "trainer.save_steps=1"
    )
    assert spawned.returncode == 0, spawned.said
    single = place.call("run_dir=single", "seed=1", "trainer.save_steps=1")
    assert single.returncode == 0, single.said
    assert place.adapter("sweep/0") == place.adapter("spawned/0") == place.adapter("single")
    assert place.adapter("sweep/1") == place.adapter("spawned/1") != place.adapter("sweep/0")
    value, other = place.record(0)["value"], place.record(0, "spawned")["value"]
    assert value == other == json.loads((place.folder / "single/metrics.json").read_text())["train/loss"]
    assert not (place.folder / "single/job.json").exists()


@pytest.mark.slow
def test_more_jobs_at_a_time_than_gpus(place: Place) -> None:
    done = place.call("-m", "seed=1,2,3", "hydra.launcher.n_jobs=3", CUDA_VISIBLE_DEVICES="7,9")
    assert done.returncode == 2
    assert done.stderr == (
        "hydratune: hydra.launcher.n_jobs=3, and each job has a GPU of its own, of which there are 2: set "
        "hydra.launcher.n_jobs=2, or auto.\n"
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("n_jobs=0", "hydra.launcher.n_jobs is auto or a number above 0, found 0."),
        ("n_jobs=some", "hydra.launcher.n_jobs is auto or a number above 0, found 'some'."),
        ("n_jobs=1.5", "hydra.launcher.n_jobs is auto or a number above 0, found 1.5."),
        ("n_jobs=true", "hydra.launcher.n_jobs is auto or a number above 0, found True."),
        ("n_jobs=null", "hydra.launcher.n_jobs is auto or a number above 0, found None."),
        ("max_failures=0", "hydra.launcher.max_failures is null or a number above 0, found 0."),
        ("timeout_min=-1", "hydra.launcher.timeout_min is null or minutes above 0, found -1."),
        ("timeout_min=soon", "hydra.launcher.timeout_min is null or minutes above 0, found 'soon'."),
        ("start_method=thread", "hydra.launcher.start_method is auto, fork or spawn, found 'thread'."),
        ("njobs=2", "hydra.launcher.njobs=2: there is no key hydra.launcher.njobs."),
    ],
)
def test_bad_settings_of_the_launcher(setting: str, said: str, refused: Callable[..., str]) -> None:
    assert refused("-m", f"hydra.launcher.{setting}", "seed=1,2") == f"hydratune: {said}\n"
