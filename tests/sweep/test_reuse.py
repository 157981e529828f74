"""What is done once is not done again: in the jobs of a sweep, and by sweep.reuse, in those of others."""

import re

import pytest
from warm import Place

LEARNT = ["trainer.save_steps=1", "trainer.max_steps=3"]


@pytest.mark.slow
def test_taken_over_from_other_sweeps_and_runs(place: Place) -> None:
    assert place.call(*LEARNT, "-m", "hydra.sweep.dir=runs/first", "seed=1,2").returncode == 0
    assert place.call(*LEARNT, "seed=3", "name=single").returncode == 0
    (single,) = (place.folder / "runs").glob("single-*")
    typed = [*LEARNT, "-m", "hydra.sweep.dir=runs/second", "seed=2,3,4", "sweep.reuse=true"]
    done = place.call(*typed, SEED_2="mistake", SEED_3="mistake")  # which training would tell of
    assert done.returncode == 0, done.said
    assert "job 0 (seed=2): taken over from runs/first/1" in done.stdout
    assert f"job 1 (seed=3): taken over from {single.relative_to(place.folder)}" in done.stdout
    assert done.stdout.count("taken over") == 2

    second = place.folder / "runs/second"
    for number, other in ((0, place.folder / "runs/first/1"), (1, single)):
        for name in ("receipts/train.json", "train_log.jsonl", "metrics.json"):
            assert (second / f"{number}" / name).read_bytes() == (other / name).read_bytes()
        weights = "adapter/adapter_model.safetensors"
        assert (second / f"{number}" / weights).samefile(other / weights)
        assert place.record(number, "runs/second")["state"] == "done"
    value = place.record(1, "runs/first")["value"]
    assert place.record(0, "runs/second")["value"] == value is not None
    assert place.record(2, "runs/second")["state"] == "done"

    before = {path: path.read_bytes() for path in (place.folder / "runs/first/1").rglob("*") if path.is_file()}
    more = place.call(
        *typed[:-1], "stages=[prepare,train,generate]", "generate.prompts=[hello]", "generate.models=[base]"
    )
    assert more.returncode == 0, more.said
    assert (second / "0/samples.jsonl").is_file()
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(before) == sorted(p for p in (place.folder / "runs/first/1").rglob("*") if p.is_file())


@pytest.mark.slow
def test_benchmark_of_the_base_is_computed_once(place: Place) -> None:
    done = place.call(
        "-m", "hydra.sweep.dir=sweep", "seed=1,2,3", "hydra.launcher.n_jobs=2", "stages=[prepare,train,evaluate]",
        "benchmark=demo", "benchmark.tasks=[demo_category]", "benchmark.limit=6", "benchmark.models=[base,adapter]",
        "objective=adapter/demo_category/acc",
    )  # fmt: skip
    assert done.returncode == 0, done.said
    asked: list[tuple[int, int]] = []
    for number in range(3):
        screen = (place.folder / f"sweep/{number}/screen.log").read_text()
        asked += [
            (int(n), int(m)) for n, m in re.findall(r"base .*?(\d+) questions, (\d+) of them answered before", screen)
        ]
        record = place.record(number)
        assert record["objective"] == "adapter/demo_category/acc" and 0 <= record["value"] <= 1
        assert record["stderr"] >= 0
    assert len(asked) == 3, screen
    assert sum(questions - known for questions, known in asked) == asked[0][0], asked
    assert len([*(place.folder / "cache/tokens").iterdir()]) == 1
