"""`hydratune sweep VERB DIR`, at each state that a sweep and its jobs may be in."""

import os
import signal
from collections.abc import Callable

import pytest
from warm import Place, kill_all, until

TYPED = ["-m", "hydra.sweep.dir=sweep", "seed=1,2,3,4,5", "trainer.max_steps=12", "hydra.launcher.n_jobs=1"]


def status(place: Place, *words: str) -> list[str]:
    done = place.sweep("status", "sweep", *words)
    assert done.returncode == 0 and not done.stderr, done.said
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_sweeps_life(place: Place) -> None:
    held = {"SEED_3": "held 1", "SEED_2": "mistake"}
    process = place.start(*TYPED, **held)
    until(lambda: "/12  loss" in process.stdout.partition("job 2 (seed=3)")[2], lambda: process.said)

    # one is done, one has failed, one is at work, the rest wait; from anywhere
    cancelled = place.sweep("cancel", "sweep", "4")
    assert cancelled.stdout == ("cancelled: none was at work, 1 do not begin; hydratune sweep resume sweep goes on\n")
    said = place.warm.call(
        "sweep", "status", str(place.folder / "sweep"), folder=place.folder.parent
    ).stdout.splitlines()
    assert said[0] == f"{place.folder}/sweep: 5 jobs, 1 waiting, 1 running, 1 done, 1 failed, 1 cancelled"
    assert said[1].startswith(f"  job 2 (seed=3) running, on {os.uname().nodename} for 0:0")
    assert "step " in said[1] and "/12  loss" in said[1]
    assert said[2] == "  job 1 (seed=2) failed (attempt 1): ValueError: a mistake of mine"
    assert said[3].startswith(f"best so far: job 0 (seed=1): train/loss {place.record(0)['value']:.4g}   (")
    assert said[4].startswith("about 0:0") and said[4].endswith(" s a job and 1 at a time") and len(said) == 5
    everything = status(place, "all=true")
    assert everything[1].startswith("  job 3 (seed=4) waiting") and "  job 4 (seed=5) cancelled" in everything
    logs = place.sweep("logs", "sweep", "lines=3").stdout.splitlines()
    assert logs[0] == "job 1 (seed=2) failed, sweep/1/screen.log:"
    assert logs[4] == "job 2 (seed=3) running, sweep/2/screen.log:" and len(logs) == 8
    assert (
        place.sweep("logs", "sweep", "3").stdout
        == "job 3 (seed=4) waiting, sweep/3/screen.log:\n  it has printed nothing yet\n"
    )

    # the whole sweep is cancelled while its process is at work
    cancelled = place.sweep("cancel", "sweep")
    assert "cancelled: 1 at work save their state and end, " in cancelled.stdout, cancelled.said
    assert process.wait() == 143, process.said
    assert place.record(2)["state"] == "stopped" and list((place.folder / "sweep/2/checkpoints").glob("checkpoint-*"))
    said = status(place)
    assert said[0] == "sweep: 5 jobs, 1 done, 1 failed, 3 cancelled"
    assert said[-1] == "cancelled: hydratune sweep resume sweep goes on"
    again = place.call(*TYPED)
    assert again.returncode == 2
    assert again.stderr == "hydratune: sweep was cancelled: type hydratune sweep resume sweep to go on.\n"
    assert place.states(5) == ["done", "failed", "stopped", "waiting", "waiting"]

    # one job is resumed, and goes on where it was; its sweep's process is killed, and the job lives on
    resume = ["sweep", "resume", "sweep", "2", "trust=true"]
    steps = len(place.steps(2))
    process = place.warm.start(*resume, folder=place.folder, **held)
    until(lambda: len(place.steps(2)) > steps, lambda: process.said)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "1 running" in status(place)[0]
    assert "1 at work save their state" in place.sweep("cancel", "sweep", "2").stdout
    until(lambda: place.record(2)["state"] == "stopped", lambda: str(place.record(2)))
    assert status(place)[0] == "sweep: 5 jobs, 1 done, 1 failed, 3 cancelled"  # the others stay it
    assert [place.record(job).get("attempt", 0) for job in range(5)] == [1, 1, 2, 0, 0]

    # killed with all its processes: interrupted
    steps = len(place.steps(2))
    process = place.warm.start(*resume, folder=place.folder, **held)
    until(lambda: len(place.steps(2)) > steps, lambda: process.said)
    kill_all(process.pid)
    process.wait()
    said = status(place)
    assert said[0] == "sweep: 5 jobs, 1 done, 1 failed, 1 interrupted, 2 cancelled", said
    assert f"  job 2 (seed=3) interrupted, on {os.uname().nodename}: killed without a word" in said
    assert said[-1] == "none is running: hydratune sweep resume sweep goes on"

    # what is missing is done, with another launcher's settings
    done = place.sweep("resume", "sweep", "trust=true", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.said
    assert status(place)[0] == "sweep: 5 jobs, 5 done"
    assert [place.record(job)["attempt"] for job in range(5)] == [1, 2, 4, 1, 1]
    assert [place.steps(job) for job in range(5)] == [[*range(1, 13)]] * 5
    nothing = place.sweep("cancel", "sweep")
    assert nothing.returncode == 2
    assert nothing.stderr == "hydratune: sweep has no job that runs or waits: nothing to cancel.\n"


@pytest.mark.slow
def test_bad_words(place: Place) -> None:
    assert place.call("-m", "hydra.sweep.dir=sweep", "seed=1,2", "stages=[prepare]").returncode == 0
    for words, said in (
        ([], "sweep takes one of status, logs, report, best, resume, cancel, found nothing: type hydratune sweep "),
        (["stats", "sweep"], "found stats (did you mean status?): type hydratune sweep status|logs|report|best|"),
        (["status"], "sweep status needs the sweep's folder: type hydratune sweep status DIR."),
        (["status", "gone"], "gone holds no sweep: there is no gone/sweep.json."),
        (["status", "sweep", "1"], "sweep status takes one folder, found '1'."),
        (["logs", "sweep", "one"], "sweep logs takes numbers of jobs after the folder, found 'one'."),
        (["logs", "sweep", "7"], "sweep has no job 7: its jobs are 0 to 1."),
        (["logs", "sweep", "lines=0"], "lines is a number above 0, found 0: set lines=20."),
        (["logs", "sweep", "lnes=3"], "sweep logs takes lines, found lnes=3 (did you mean lines?): leave it out."),
        (["cancel", "sweep", "force=true"], "sweep cancel takes no settings, found force=true: leave it out."),
        (["cancel", "sweep", "0"], "sweep has no job that runs or waits among those: nothing to cancel."),
        (["resume", "sweep", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs is auto or a number above 0, found 0."),
        (
            ["resume", "sweep"],
            "says trainer.callbacks=['mine:Mine'], which can make hydratune run code of its choice: type "
            "trust=true if it is yours.",
        ),
        (["resume", "sweep", "lora.r=3"], "sweep resume takes hydra.launcher.n_jobs, "),
        (["resume", "sweep", "9"], "sweep has no job 9: its jobs are 0 to 1."),
    ):
        done = place.sweep(*words)
        assert done.returncode == 2, done.said
        assert said in done.stderr and done.stderr.count("\n") == 1, (words, done.stderr)
    (place.folder / "sweep/sweep.json").write_text("[]")
    assert "sweep/sweep.json is no sweep's: name another folder." in place.sweep("status", "sweep").stderr
    (place.folder / "sweep/sweep.json").write_text("{")
    assert "sweep/sweep.json can't be read: " in place.sweep("status", "sweep").stderr


def test_options_have_no_use(refused: Callable[..., str]) -> None:
    assert "-m has no use here: type hydratune sweep " in refused("sweep", "status", "-m", "x")
