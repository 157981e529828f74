"""Products, values in step, and seeds, as the overrides of jobs; and where a sweep's settings may stand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm import Place

from hydratune.config.schema import ConfigError
from hydratune.config.settings import config_loader
from hydratune.sweep.grid import grid

AB = ["lora.r=8,16", "trainer.learning_rate=1e-3,1e-4"]


@pytest.mark.parametrize(
    ("overrides", "zipped", "seeds", "jobs"),
    [
        (["seed=1"], [], [], ["seed=1"]),
        (
            AB,
            [],
            [],
            [
                "lora.r=8 trainer.learning_rate=0.001", "lora.r=8 trainer.learning_rate=0.0001",
                "lora.r=16 trainer.learning_rate=0.001", "lora.r=16 trainer.learning_rate=0.0001",
            ],
        ),
        (AB, ["lora.r", "trainer.learning_rate"], [], [
            "lora.r=8 trainer.learning_rate=0.001", "lora.r=16 trainer.learning_rate=0.0001",
        ]),
        (AB, [["trainer.learning_rate", "lora.r"]], [], [
            "trainer.learning_rate=0.001 lora.r=8", "trainer.learning_rate=0.0001 lora.r=16",
        ]),
        (["a=1,2", "name=x", "b=1,2", "c=1,2", "d=3,4"], [["a", "c"], ["b", "d"]], [], [
            "a=1 c=1 name=x b=1 d=3", "a=1 c=1 name=x b=2 d=4", "a=2 c=2 name=x b=1 d=3", "a=2 c=2 name=x b=2 d=4",
        ]),
        (["seed=5", "lora.r=range(8,25,8)"], [], [5, 6], [
            "lora.r=8 seed=5", "lora.r=8 seed=6", "lora.r=16 seed=5", "lora.r=16 seed=6", "lora.r=24 seed=5",
            "lora.r=24 seed=6",
        ]),
        (["lora=attention,all_linear", "name='a,b'"], [], [], ["lora=attention name='a,b'", "lora=all_linear name='a,b'"]),
        (["lora.target_modules=[q_proj],[q_proj,v_proj]"], [], [], [
            "lora.target_modules=[q_proj]", "lora.target_modules=[q_proj,v_proj]",
        ]),
    ],
)  # fmt: skip
def test_combinations(overrides: list[str], zipped: list[Any], seeds: list[int], jobs: list[str]) -> None:
    assert [" ".join(job) for job in grid(config_loader(None), overrides, zipped, seeds)] == jobs


@pytest.mark.parametrize(
    ("overrides", "zipped", "seeds", "said"),
    [
        (["a=1,2", "b=1,2,3"], ["a", "b"], [], "sweep.zip takes the values of its keys in step, and a has 2, b has 3: "),
        (AB, ["lora.r", "seed"], [], "sweep.zip names seed, which is not swept: type seed=VALUE,VALUE, or leave it out."),
        (AB, ["lora.r", "lora.r"], [], "sweep.zip names lora.r twice: leave it out once."),
        (["a=1,2", "b=1,2", "c=1,2"], [["a", "b"], ["b", "c"]], [], "sweep.zip names b twice"),
        (AB, ["lora.r"], [], "sweep.zip needs two keys or more, found lora.r alone: leave sweep.zip out."),
        (AB, [["lora.r", "trainer.learning_rate"], "seed"], [], "sweep.zip is a list of keys, or a list of such lists: "),
        (["seed=1,2"], [], [1, 2], "sweep.seeds and a swept seed are two lists of seeds: leave out one of them."),
        (["lora.r=range(1,1)"], [], [], "lora.r=range(1,1) has no value, so there is no job: give it one."),
    ],
)  # fmt: skip
def test_no_combinations(overrides: list[str], zipped: list[Any], seeds: list[int], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid(config_loader(None), overrides, zipped, seeds)
    assert said in " ".join(error.value.sentences)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["lora.r=8,16", "sweep.zip=[lora.r,seed]"], "sweep.zip names seed, which is not swept"),
        (["lora.r=8,16", "seed=1,2,3", "sweep.zip=[lora.r,seed]"], "lora.r has 2, seed has 3: give each as many."),
        (["seed=1,2", "sweep.seeds=2"], "sweep.seeds and a swept seed are two lists of seeds"),
        (["sweep.seeds=0"], "sweep.seeds is a whole number above 0, found 0."),
        (["sweep.zpi=[]"], "there is no key sweep.zpi (did you mean sweep.zip?)"),
        (["sweep.direction=down"], "sweep.direction"),
        (["-m", "lora.r=range(1,1)"], "lora.r=range(1,1)"),
    ],
)
def test_mistakes_as_typed(typed: list[str], said: str, refused: Callable[..., str]) -> None:
    assert said in refused(*typed, "hydra.sweep.dir=sweep")


def listed(place: Place, *typed: str) -> list[str]:
    """The settings of the jobs that a dry run shows."""
    done = place.call(*typed, "stages=[]", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.said
    rows = done.stdout.splitlines()[1:-2]
    assert done.stdout.splitlines()[-1].startswith(f"{len(rows)} jobs checked")
    return [" ".join(row.split()[1:-1]) for row in rows]


@pytest.mark.slow
def test_what_begins_a_sweep(place: Place) -> None:
    assert listed(place, "sweep.seeds=3") == ["seed=42", "seed=43", "seed=44"]
    assert listed(place, "hydra/launcher=here") == [""]
    zipped = listed(
        place, "lora.r=8,16", "lora.lora_alpha=16,32", "sweep.zip=[lora.r,lora.lora_alpha]", "sweep.seeds=1"
    )
    assert zipped == ["lora.r=8 lora.lora_alpha=16 seed=42", "lora.r=16 lora.lora_alpha=32 seed=42"]
    assert listed(place, "sweep=seeds") == ["seed=1", "seed=2", "seed=3"]
    assert sorted(path.name for path in place.folder.iterdir()) == ["mine.py", "rows.jsonl"]


@pytest.mark.slow
def test_files_of_the_users(place: Place) -> None:
    for kind, name, lines in (
        ("sweep", "steps", "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      lora.r: 8,16\n      lora.lora_alpha: 1,2\n"
         "sweep:\n  zip: [lora.r, lora.lora_alpha]\n  seeds: 2\n"),
        ("experiment", "single", "sweep:\n  seeds: 2\n"),
    ):  # fmt: skip
        folder = place.folder / "conf" / kind
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n# x: hydratune {kind}={name}\n{lines}")
    (place.folder / "empty").mkdir()
    assert listed(place, "--config-dir", "conf", "sweep=steps", "seed=7") == [
        f"lora.r={r} lora.lora_alpha={alpha} seed={seed}" for r, alpha in ((8, 1), (16, 2)) for seed in (7, 8)
    ]
    single = place.call("--config-dir", "conf", "experiment=single")
    assert single.returncode == 2
    assert "sweep.seeds has no effect on a single run: type hydratune -m, or leave it out." in single.stderr
    assert not Path(place.folder / "runs").exists()
