"""What is not taken for done: results of other rows, of another model, of a damaged folder, or of another command."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from warm import Place, place_in, until

OTHERS = "the rows, the tokenizer, or how hydratune makes tokens of them is not what it was"
FIRST = ["-m", "hydra.sweep.dir=runs/first", "seed=1,2"]
SECOND = ["-m", "hydra.sweep.dir=runs/second", "seed=1,2", "sweep.reuse=true"]


@pytest.fixture
def trained(place: Place, tiny: Path) -> Place:
    """A sweep of two jobs, of a model that is the test's own."""
    shutil.copytree(tiny, place.folder / "model")
    mine = place_in(place.folder, place.warm, place.folder / "model", (place.folder / "rows.jsonl").read_text())
    done = mine.call(*FIRST)
    assert done.returncode == 0, done.said
    return mine


@pytest.mark.slow
def test_other_rows_and_other_weights(trained: Place) -> None:
    rows = trained.folder / "rows.jsonl"
    first, text = trained.adapter("runs/first/0"), rows.read_text()
    rows.write_text(text)  # written anew, and the same
    done = trained.call(*SECOND, EACH="mistake")  # which training would tell of
    assert done.returncode == 0, done.said
    assert done.stdout.count(": taken over from runs/first/") == 2 and "not taken over" not in done.stdout

    rows.write_text("".join(text.splitlines(keepends=True)[:12]))
    os.utime(rows, (0, 0))  # as a file that was moved here
    done = trained.call(*SECOND[:1], "hydra.sweep.dir=runs/third", *SECOND[2:])
    assert done.returncode == 0, done.said
    assert f"job 0 (seed=1): not taken over from runs/first/0: {OTHERS}\n" in done.stdout
    assert done.stdout.count("taken over") == 2, done.said
    assert json.loads((trained.folder / "runs/third/0/metrics.json").read_text())["prepare/rows"] == 12
    assert trained.adapter("runs/third/0") != first == trained.adapter("runs/second/0")

    # of two, the one that is of these rows
    done = trained.call(*SECOND[:1], "hydra.sweep.dir=runs/fourth", "seed=2,1", "sweep.reuse=true", EACH="mistake")
    assert done.returncode == 0, done.said
    assert "job 1 (seed=1): taken over from runs/third/0\n" in done.stdout and "not taken over" not in done.stdout

    rows.write_text(text)
    weights = trained.folder / "model/model.safetensors"
    shutil.copy2(weights, trained.folder / "new")
    (trained.folder / "new").rename(weights)  # which keeps the time of its last change
    done = trained.call(*SECOND[:1], "hydra.sweep.dir=runs/fifth", *SECOND[2:])
    assert done.returncode == 0, done.said
    assert f": not taken over from runs/first/0: {trained.folder}/model has changed since\n" in done.stdout
    assert trained.adapter("runs/fifth/0") == first  # the weights were the same after all


@pytest.mark.slow
def test_damaged_neighbours(trained: Place) -> None:
    runs = trained.folder / "runs"
    for name, jobs in (("cut", '{"number": 0, "ha'), ("other", "[1]\n"), ("old", '{"nr": 3}\n'), ("bytes", "\udcff\n")):
        (runs / name).mkdir()
        (runs / name / "jobs.jsonl").write_bytes(jobs.encode(errors="surrogateescape"))
        (runs / name / "sweep.json").write_text("{")
    (runs / "first/0/receipts/train.json").write_text('{"outputs": 3}')
    (runs / "first/1/prepared.json").write_text("{}")
    done = trained.call(*SECOND)
    assert done.returncode == 0, done.said
    for name in ("cut", "other", "old", "bytes"):
        assert f"nothing is taken over from runs/{name}: its jobs.jsonl can't be read (" in done.stdout
    assert "job 1 (seed=2): not taken over from runs/first/1: " in done.stdout
    assert "seed=1): taken" not in done.stdout and "Traceback" not in done.said
    assert trained.states(2, "runs/second") == ["done"] * 2


@pytest.mark.slow
def test_no_room_for_what_is_taken_over(trained: Place) -> None:
    (trained.folder / "runs/first/0/zzz").write_bytes(bytes(2**21))
    (trained.folder / "runs/first/1/samples.jsonl").write_bytes(bytes(2**21))
    done = trained.call(*SECOND, limit=2**20)
    assert done.returncode == 0, done.said
    for number, name in ((0, "zzz"), (1, "samples.jsonl")):
        said = f": not taken over from runs/first/{number}: File too large (runs/second/{number}/{name})\n"
        assert said in done.stdout, done.said
        assert not (trained.folder / f"runs/second/{number}/{name}").exists()
    assert "prepare   done in" in (trained.folder / "runs/second/0/screen.log").read_text()  # no receipt was left
    assert trained.states(2, "runs/second") == ["done"] * 2


@pytest.mark.slow
def test_a_second_command_that_asks_for_more(place: Place) -> None:
    typed = ["-m", "hydra.sweep.dir=sweep", "seed=1,2"]
    more = ["stages=[prepare,train,generate]", "generate.prompts=[hello]", "generate.models=[base]"]
    first = place.start(*typed, EACH="held 1")
    until(lambda: place.steps(0), lambda: first.said)
    second = place.start(*typed, *more, "objective=train/seconds")
    until(lambda: place.record(1).get("state") == "done" or second.poll() is not None)
    assert "1 of the jobs are at work with other settings: when they have ended, they go on with these" in second.stdout
    (place.folder / "go").touch()
    assert [first.wait(), second.wait()] == [0, 0], first.said + second.said
    for number in range(2):
        assert place.record(number)["objective"] == "train/seconds"
        assert (place.folder / f"sweep/{number}/samples.jsonl").is_file()
        assert place.steps(number) == [1, 2]


@pytest.mark.slow
def test_prompts_of_a_file_are_answered_by_one_of_two(place: Place) -> None:
    (place.folder / "prompts.txt").write_text("hello\n")
    typed = [
        "-m", "hydra.sweep.dir=sweep", "seed=1,2", "stages=[prepare,train,generate]", "generate.file=prompts.txt",
        "generate.models=[base]",
    ]  # fmt: skip
    both = [place.start(*typed, EACH="held 1") for _ in range(2)]
    until(lambda: place.steps(0) and place.steps(1), lambda: both[0].said + both[1].said)
    (place.folder / "go").touch()
    assert [one.wait() for one in both] == [0, 0], both[0].said + both[1].said
    assert [place.record(number)["attempt"] for number in range(2)] == [1, 1]
    time.sleep(0.01)
    again = place.call(*typed)  # the file may hold others by now
    assert again.returncode == 0, again.said
    assert [place.record(number)["attempt"] for number in range(2)] == [2, 2]
