"""The folder that a command names by itself, and what counts as the same sweep in a folder that is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.types import RunMode
from warm import Place

from hydratune.config.schema import Config
from hydratune.config.settings import config_loader
from hydratune.sweep import identity
from hydratune.sweep.jobs import Plan, planned

PREPARE = "stages=[prepare]"
NAMED = ["-m", "hydra.sweep.dir=sweep", PREPARE]


def entries(folder: Path) -> dict[str, int]:
    """The numbers of the jobs by what differs between them."""
    lines = [json.loads(line) for line in (folder / "jobs.jsonl").read_text().splitlines()]
    return {" ".join(line["overrides"]): line["number"] for line in lines if not line["replaced"]}


def experiments(place: Place, **ranks: int) -> list[str]:
    folder = place.folder / "conf/experiment"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rank in ranks.items():
        text = f"# @package _global_\n# x: hydratune experiment={name}\nname: {name}\nlora:\n  r: {rank}\n"
        (folder / f"{name}.yaml").write_text(text)
    return ["--config-dir", "conf", "-m", PREPARE]


def made(place: Place, *words: str) -> list[str]:
    """The sweeps' folders after the command."""
    done = place.call(*words)
    assert done.returncode == 0, done.said
    return sorted(path.name for path in (place.folder / "runs").iterdir())


@pytest.mark.slow
def test_the_order_of_values_and_one_more_name_no_other_folder(place: Place) -> None:
    typed = experiments(place, aaa=4, bbb=5, ccc=6)
    (first,) = made(place, *typed, "experiment=aaa,bbb")
    assert first.startswith("sweep-"), first
    assert made(place, *typed, "experiment=ccc,bbb,aaa") == [first]
    found = entries(place.folder / "runs" / first)
    assert found == {"experiment=aaa": 0, "experiment=bbb": 1, "experiment=ccc": 2}
    assert [place.record(number, f"runs/{first}")["attempt"] for number in range(3)] == [1, 1, 1]
    two = made(place, "-m", PREPARE, "name=x,y", "lora.r=4,8", "sweep.zip=[name,lora.r]")
    assert len(two) == 2 and all(name.startswith("sweep-") for name in two)
    assert made(place, "-m", PREPARE, "name=y,x", "lora.r=8,4", "sweep.zip=[name,lora.r]") == two
    three = made(place, *typed, "experiment=aaa", "seed=1,2")
    assert [name.startswith("aaa-sweep-") for name in three].count(True) == 1  # a name that all share stays in it


@pytest.mark.slow
def test_a_name_that_all_had_stays_when_one_has_another(place: Place) -> None:
    typed = experiments(place, aaa=4, bbb=5, ccc=6)
    for name in "aaa", "bbb":
        file = place.folder / f"conf/experiment/{name}.yaml"
        file.write_text(file.read_text().replace(f"name: {name}", "name: ours"))
    (first,) = made(place, *typed, "experiment=aaa,bbb")
    assert first.startswith("ours-sweep-")
    assert made(place, *typed, "experiment=ccc,aaa,bbb") == [first]


@pytest.mark.slow
def test_one_value_becomes_several(place: Place) -> None:
    folder = place.folder / "sweep"
    for typed, expected in (
        (["seed=1", "lora.r=4"], {"": 0}),
        (["seed=1,2", "lora.r=4"], {"seed=1": 0, "seed=2": 1}),
        (["seed=2,3", "lora.r=4,8"], {
            "seed=1": 0, "seed=2 lora.r=4": 1, "seed=2 lora.r=8": 2, "seed=3 lora.r=4": 3, "seed=3 lora.r=8": 4,
        }),
        (["seed=1", "lora.r=4"], {
            "seed=1 lora.r=4": 0, "seed=2 lora.r=4": 1, "seed=2 lora.r=8": 2, "seed=3 lora.r=4": 3, "seed=3 lora.r=8": 4,
        }),
    ):  # fmt: skip
        done = place.call(*NAMED, *typed)
        assert done.returncode == 0, done.said
        assert entries(folder) == expected
    assert [place.record(number)["attempt"] for number in range(5)] == [1] * 5
    kept = {path: path.read_bytes() for path in folder.glob("*.json*")}
    for typed in (
        ["seed=1,2", "lora.r=4", "lora.lora_alpha=8,16"],
        ["seed=1,2"],
        ["seed=1", "lora.r=4", "data.seed=2"],
    ):
        other = place.call(*NAMED, *typed)
        assert other.returncode == 2, other.said
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.slow
def test_a_job_without_a_key_that_is_swept_later_is_named_with_it(place: Place) -> None:
    words = ["-m", "hydra.sweep.dir=sweep", "trainer.max_steps=1"]
    for typed in (["lora.r=4"], ["lora.r=8,16"]):
        done = place.call(*words, *typed)
        assert done.returncode == 0, done.said
    lines = place.sweep("report", "sweep").stdout.splitlines()[1:4]
    assert sorted(line.split()[1] for line in lines) == ["lora.r=16", "lora.r=4", "lora.r=8"]


@pytest.mark.slow
def test_what_a_search_spells_anew_is_not_swept(place: Place) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = place.call(
        "-m", "hydra.sweep.dir=sweep", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.sampler.seed=1", "trainer.max_steps=1", "lora.r=4,8",
    )  # fmt: skip
    assert done.returncode == 0, done.said
    (line,) = (place.folder / "sweep/jobs.jsonl").read_text().splitlines()
    assert [word.partition("=")[0] for word in json.loads(line)["overrides"]] == ["lora.r"]
    assert "trainer.callbacks=[mine\\:Mine]" in json.loads(line)["words"]
    assert json.loads((place.folder / "sweep/sweep.json").read_text())["swept"] == ["lora.r"]


@pytest.fixture
def plan(tmp_path: Path, tiny: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Of the jobs with these words, each a sweep's in the folder `sweep`."""
    monkeypatch.chdir(tmp_path)
    shared = ["model=local", f"model.name_or_path={tiny}", f"data.path={rows}", "quantization=none", PREPARE]

    def call(*jobs: str) -> Plan:
        loader = config_loader(None)
        typed = [*shared, "hydra.sweep.dir=sweep"]
        master = loader.load_configuration("config", typed, RunMode.MULTIRUN)
        return planned(loader, master, [[*shared, *job.split()] for job in jobs])

    return call


def test_other_settings_of_the_same_hash_are_other_jobs(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = identity.config_hash

    def short(config: Config) -> str:
        return "0" if config.seed in (1, 2) else real(config)

    monkeypatch.setattr(identity, "config_hash", short)
    found = plan("seed=1", "seed=3", "seed=2")
    assert [job.number for job in found.jobs] == [0, 1, 2]
    assert [len(job.hash) for job in found.jobs] == [25, 8, 25]
    found.register()
    assert [job.number for job in plan("seed=2", "seed=4", "seed=1").jobs] == [2, 3, 0]
    assert yaml.safe_load(Path("sweep/2/config.yaml").read_text())["seed"] == 2
    with pytest.raises(Exception, match="Two jobs are the same run, seed=1 and seed=1"):
        plan("seed=1", "seed=2", "seed=1")
