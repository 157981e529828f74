"""A sweep that is asked to stop saves its jobs' states, and goes on as if nobody had asked."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm import Place, until

TYPED = ["-m", "seed=1,2,3", "trainer.max_steps=16", "hydra.launcher.n_jobs=2"]


@pytest.mark.slow
def test_stopped_again_and_again(place: Place) -> None:
    for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGINT, 130)):
        before = [len(place.steps(job)) for job in (0, 1)]
        what = "hung 1" if status == 130 else "held 1"
        process = place.start(*TYPED, "hydra.sweep.dir=sweep", EACH=what)
        until(lambda: all(len(place.steps(job)) > steps for job, steps in enumerate(before)), lambda: process.said)  # noqa: B023
        process.send_signal(number)
        while status == 130 and process.poll() is None:  # Ctrl-C again and again
            process.send_signal(number)
            time.sleep(0.03)
        assert process.wait() == status, process.said
        assert not any(place.lives(job) for job in (0, 1))
        if status == 75:
            assert place.states(3) == ["stopped", "stopped", "waiting"]
            assert "3 of 3 jobs are not done: hydratune sweep resume sweep goes on" in process.stdout
            for job in (0, 1):
                saved = [path.name for path in (place.folder / f"sweep/{job}/checkpoints").glob("checkpoint-*")]
                assert f"checkpoint-{place.steps(job)[-1]}" in saved
        assert place.steps(2) == []

    process = place.start(*TYPED, "hydra.sweep.dir=sweep", EACH="held 1")
    until(lambda: place.states(3)[:2] == ["running"] * 2)
    process.send_signal(signal.SIGHUP)  # the terminal is closed
    (place.folder / "go").touch()
    assert process.wait() == 0, process.said
    assert [place.record(job)["attempt"] for job in range(3)] == [4, 4, 1]
    whole = place.call(*TYPED, "hydra.sweep.dir=whole")
    assert whole.returncode == 0, whole.said
    for job in range(3):
        assert place.steps(job) == list(range(1, 17))
        assert place.adapter(f"sweep/{job}") == place.adapter(f"whole/{job}")


# a module of the user's: checked before there is a list of jobs, it lets none of them come to its training afterwards
WAITING = """
import time
from pathlib import Path
from transformers import TrainerCallback
latest = time.monotonic() + 600
while Path("sweep/jobs.jsonl").exists() and time.monotonic() < latest:
    time.sleep(0.02)
"""


@pytest.mark.slow
def test_stopped_before_its_first_job(tiny: Path, rows: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """A command as it is typed: what is imported between two jobs and their processes is the same as elsewhere."""
    typed = [
        "-m", "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
        "trainer.callbacks=[waiting:TrainerCallback]", "hydra.sweep.dir=sweep", "seed=1,2", "stages=[prepare,train]",
    ]  # fmt: skip
    (tmp_path / "waiting.py").write_text(WAITING)
    process = subprocess.Popen([sys.executable, "-m", "hydratune", *typed], cwd=tmp_path, env=environment)
    until((tmp_path / "sweep/jobs.jsonl").is_file)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) in (75, -signal.SIGTERM)  # the latter where nothing had begun
    assert not list((tmp_path / "sweep").glob("*/checkpoints/checkpoint-*"))
    assert not (tmp_path / "sweep/1/job.json").exists()
