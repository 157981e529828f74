"""A sweep's folder: the same command finds it again, its jobs keep their numbers, and nothing in it is done twice."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from warm import Place

SWEEP = ["-m", "hydra.sweep.dir=sweep"]


def numbers(place: Place, sweep: str = "sweep") -> dict[str, int]:
    """Those of the jobs that count, by what they are."""
    lines = [json.loads(line) for line in (place.folder / sweep / "jobs.jsonl").read_text().splitlines()]
    return {" ".join(line["overrides"]): line["number"] for line in lines if not line["replaced"]}


@pytest.mark.slow
def test_what_is_done_stays(place: Place) -> None:
    assert place.call(*SWEEP, "seed=1,2").returncode == 0
    files = sorted((place.folder / "sweep").glob("[01]/**/*.*"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files if path.is_file()}

    half = place.folder / "sweep/.jobs.jsonl.1"  # of one that was killed as it wrote
    half.write_text("{")
    again = place.call(*SWEEP, "seed=1,2")
    assert not half.exists()
    assert again.returncode == 0, again.said
    assert "job 0 (seed=1): done already\njob 1 (seed=2): done already\n" in again.stdout
    more = place.call(*SWEEP, "seed=3,1", "hydra.launcher.n_jobs=2")
    assert more.returncode == 0, more.said
    assert "job 0 (seed=1): done already" in more.stdout and "job 2 (seed=3) done in" in more.stdout
    assert numbers(place) == {"seed=1": 0, "seed=2": 1, "seed=3": 2}
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before

    for typed in (["seed=1,2", "lora.r=4"], ["seed=1,2", "lora.r=4,8"]):
        other = place.call(*SWEEP, *typed)
        assert other.returncode == 2
        assert "hydratune: sweep holds another sweep (hydratune model=local " in other.stderr
        assert other.stderr.endswith("): set another hydra.sweep.dir.\n")
    assert numbers(place) == {"seed=1": 0, "seed=2": 1, "seed=3": 2}


@pytest.mark.slow
def test_jobs_of_a_changed_file_take_the_place_of_those_before(place: Place) -> None:
    file = place.folder / "conf/experiment/x.yaml"
    file.parent.mkdir(parents=True)
    typed = ["--config-dir", "conf", "experiment=x", "seed=1,2", *SWEEP, "stages=[prepare]"]
    for rank, expected in ((4, {"seed=1": 0, "seed=2": 1}), (8, {"seed=1": 2, "seed=2": 3}), (4, None)):
        file.write_text(f"# @package _global_\n# x: hydratune experiment=x\nlora:\n  r: {rank}\n")
        done = place.call(*typed)
        assert done.returncode == 0, done.said
        if expected:
            assert numbers(place) == expected
    assert numbers(place) == {"seed=1": 0, "seed=2": 1}
    assert place.sweep("status", "sweep").stdout.startswith("sweep: 2 jobs, 2 done\n")
    assert [place.record(number)["attempt"] for number in range(4)] == [1] * 4


@pytest.mark.slow
def test_the_folder_has_a_name_of_its_own(place: Place) -> None:
    """Which values are swept doesn't name it, so that another value extends the sweep; what is shared does."""
    folders = []
    for typed in (["seed=1,2"], ["seed=5"], ["seed=1,2", "lora.r=4"], ["seed=1,2", "stages=[]"]):
        done = place.call("-m", *typed, "generate.max_new_tokens=7", "stages=[]")
        assert done.returncode == 0, done.said
        folders.append(done.stdout.splitlines()[1].split()[-1].rpartition("/")[0])
    assert folders[0].startswith("runs/run-sweep-")
    assert folders[3] == folders[0] and folders[2] != folders[0]
    own = place.call("-m", "generate.do_sample=true", "generate.temperature=0.5,0.7", "stages=[]")
    assert [line.split()[0] for line in own.stdout.splitlines()[1:-2]] == ["0", "1"], own.said


@pytest.mark.slow
def test_a_folder_that_can_not_be_written(place: Place) -> None:
    before = sorted(place.folder.rglob("*"))
    for folder, limit in (("sweep", 2048), ("deep/er/sweep", 2048), ("rows.jsonl/sweep", 0)):
        done = place.call("-m", f"hydra.sweep.dir={folder}", "seed=1,2", limit=limit)
        assert done.returncode == 2, done.said
        assert done.stderr.count("hydratune:") == 1 and "Traceback" not in done.stderr
        assert f"The sweep's folder {folder} can't be written (" in done.stderr
        assert "and nothing was started: make room there, or set hydra.sweep.dir=DIR." in done.stderr
        assert sorted(place.folder.rglob("*")) == before
    assert place.call(*SWEEP, "seed=1,2", "stages=[prepare]").returncode == 0
    full = place.call(*SWEEP, "seed=1,2,3", "stages=[prepare]", limit=2048)
    assert full.returncode == 2, full.said
    assert sorted(path.name for path in (place.folder / "sweep").iterdir() if path.is_dir()) == ["0", "1"]
    assert numbers(place) == {"seed=1": 0, "seed=2": 1}
    assert "the sweep's folder sweep can't be written" in full.stderr.lower()


def test_another_things_folder(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "run/0").mkdir(parents=True)
    (tmp_path / "run/0/config.yaml").write_text("seed: 1\n")
    (tmp_path / "file").write_text("")
    for name in ("run", "file"):
        said = refused(*SWEEP[:1], f"hydra.sweep.dir={name}", "seed=1,2")
        assert (
            said
            == f"hydratune: {name} is there already, and holds no sweep of this kind: set another hydra.sweep.dir.\n"
        )


def test_two_jobs_that_are_one(refused: Callable[..., str]) -> None:
    said = refused(*SWEEP, "lora.r=8,8")
    assert said == "hydratune: Two jobs are the same run, lora.r=8 and lora.r=8: leave one of them out.\n"
