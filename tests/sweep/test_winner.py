"""What `hydratune sweep best` prints trains the winner again; and which setting that is."""

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from warm import Place

from hydratune.config.load import CONF_DIR
from hydratune.sweep.ranking import least_is_best
from hydratune.sweep.winner import _spelled
from tests.sweeps_on_disk import ACC, Job, write_sweep

SWEEP = ["-m", "hydra.sweep.dir=sweep"]


def scored(share: float, n: int = 100) -> list[float]:
    """0/1 scores of documents, so many of them right."""
    return [float(place < share * n) for place in range(n)]


def best_of(place: Place, sweep: str = "sweep") -> list[str]:
    """The words of the printed command, after `hydratune`."""
    done = place.sweep("best", sweep)
    assert done.returncode == 0, done.said
    program, *words = shlex.split(done.stdout.splitlines()[0])
    assert program == "hydratune"
    return words


def winner_of(place: Place, count: int) -> int:
    values = {number: place.record(number)["value"] for number in range(count)}
    return min(values, key=lambda number: values[number])


def trains_the_same(place: Place, words: list[str], winner: int, run: str) -> None:
    """The printed words, typed as they are but for the folder."""
    done = place.warm.call(*words, f"run_dir={run}", folder=place.folder, HYDRATUNE_CACHE=str(place.folder / "cache"))
    assert done.returncode == 0, done.said
    assert place.adapter(run) == place.adapter(f"sweep/{winner}")
    assert sorted(path.name for path in (place.folder / run / "receipts").iterdir()) == ["prepare.json", "train.json"]


@pytest.mark.slow
def test_the_command_trains_the_winner_whatever_was_edited(place: Place) -> None:
    conf = place.folder / "conf"
    (conf / "experiment").mkdir(parents=True)
    root = (CONF_DIR / "config.yaml").read_text()
    (conf / "other.yaml").write_text(root.replace("seed: 42", "seed: 7"))
    experiment = conf / "experiment/x.yaml"
    experiment.write_text("# @package _global_\n# x: hydratune experiment=x\ntrainer:\n  learning_rate: 1e-3\n")
    typed = ["--config-dir", "conf", "--config-name", "other", *SWEEP, "experiment=x", "lora.r=2,4"]
    assert place.call(*typed).returncode == 0
    winner = winner_of(place, 2)
    words = best_of(place)
    assert words[:4] == ["--config-dir", str(conf), "--config-name", "other"]
    assert f"lora.r={(2, 4)[winner]}" in words and "experiment=x" in words
    trains_the_same(place, words, winner, "again")

    # from elsewhere the rows, which were named by a relative path, would be others
    away = place.warm.call("sweep", "best", str(place.folder / "sweep"), folder=place.folder.parent)
    assert away.stdout.startswith(f"hydratune --from {place.folder}/sweep/{winner} "), away.said

    said = place.sweep("report", "sweep").stdout
    assert "by now: a file was edited since" not in said
    experiment.write_text(experiment.read_text().replace("1e-3", "5e-2"))
    words = best_of(place)
    expected = ["--from", f"sweep/{winner}", "trainer.callbacks=[mine:Mine]", "stages=[prepare,train]"]
    assert words == expected
    trains_the_same(place, words, winner, "from")
    note = "jobs 0 1 trained with other settings than the same words give by now: a file was edited since"
    assert note in place.sweep("report", "sweep").stdout.splitlines()
    # what trained again with the new settings takes their place
    assert place.call(*typed).returncode == 0
    assert "a file was edited since" not in place.sweep("report", "sweep").stdout


@pytest.mark.slow
def test_a_folder_in_place_of_conf(place: Place) -> None:
    """--config-path is not printed, since only the run itself says for sure what its files said."""
    copied = place.folder / "copied"
    for path in CONF_DIR.rglob("*.yaml"):
        (copied / path.relative_to(CONF_DIR)).parent.mkdir(parents=True, exist_ok=True)
        (copied / path.relative_to(CONF_DIR)).write_text(path.read_text().replace("seed: 42", "seed: 7"))
    assert place.call("--config-path", str(copied), *SWEEP, "lora.r=2,4").returncode == 0
    winner = winner_of(place, 2)
    assert best_of(place)[:2] == ["--from", f"sweep/{winner}"]
    trains_the_same(place, best_of(place), winner, "again")


@pytest.mark.slow
def test_a_sweep_in_an_experiments_file(place: Place) -> None:
    """Typed again it would be a sweep, and `sweep.seeds` has no effect on a single run."""
    file = place.folder / "conf/experiment/x.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\n# x: hydratune experiment=x\nsweep:\n  seeds: 2\n")
    assert place.call("--config-dir", "conf", *SWEEP, "experiment=x").returncode == 0
    trains_the_same(place, best_of(place), winner_of(place, 2), "again")


@pytest.mark.parametrize(
    "value",
    [
        ["mine:Mine", "my.module:Other"],
        {"attn": "a b", "on": True, "n": 3, "x": 1e-05, "none": None, "many": ["1", "true", "it's", "${x}", ""]},
        "mine:f",
        "/a/b c/d.yaml",
        "true",
        "x\\'",
        True,
    ],
)
def test_values_as_hydra_reads_them(value: Any) -> None:
    override = OverridesParser.create().parse_override(f"key={_spelled(value)}")
    read = override.value()
    assert json.loads(json.dumps(read).replace("\\\\${", "${")) == value


def test_code_of_the_users_is_named(warm: Callable[..., Any], tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "sweep", [Job(["a=1"], scored(0.4)), Job(["a=2"], scored(0.6))])
    (tmp_path / "tasks").mkdir()
    saved = {
        "trainer": {"callbacks": ["mine:Mine"]},
        "model": {"name_or_path": "demo", "extra": {"low_cpu_mem_usage": True}},
        "benchmark": {"include_path": str(tmp_path / "tasks")},
        "stages": ["prepare"],
    }
    (root / "1/config.yaml").write_text(yaml.safe_dump(saved))
    done = warm("sweep", "best", "sweep")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.splitlines()[0])[1:]
    assert words == [
        "--from", "sweep/1", "trainer.callbacks=[mine:Mine]", f"benchmark.include_path={tmp_path}/tasks",
        "++model.extra={low_cpu_mem_usage:true}", "stages=[prepare]",
    ]  # fmt: skip
    (tmp_path / "mine.py").write_text("class Mine: pass\n")
    accepted = warm(*words, "data.path=gone.jsonl")
    assert "can make hydratune run code of its choice" not in accepted.stderr, accepted.stderr
    assert "gone.jsonl" in accepted.stderr
    refused = warm(*words[:2], *words[3:], "data.path=gone.jsonl")
    assert "trainer.callbacks=['mine:Mine'], which can make hydratune run code of its choice" in refused.stderr


def seeds(*settings: tuple[float | None, ...]) -> list[Job]:
    """Settings a=0, a=1, …: the shares of their seeds, of which None has failed."""
    return [
        Job([f"a={place}", f"seed={seed}"], state="failed", cause="CUDA ran out of memory")
        if share is None
        else Job([f"a={place}", f"seed={seed}"], scored(share), higher_is_better=True)
        for place, shares in enumerate(settings)
        for seed, share in enumerate(shares)
    ]


def test_a_setting_that_lacks_seeds_is_below_those_that_do_not(warm: Callable[..., Any], tmp_path: Path) -> None:
    jobs = seeds((0.99, None, None), (0.5, 0.51, 0.52), (0.7, 0.71, 0.72))
    jobs += [Job(["a=3", f"seed={seed}"], state="waiting") for seed in range(3)]
    root = write_sweep(tmp_path / "sweep", jobs)
    lines = warm("sweep", "report", "sweep").stdout.splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["a=2", "a=1", "a=0"]
    assert " best " in lines[1] and "not compared: 2 of its 3 seeds have no value  1 of 3 " in lines[3]
    assert "1 not compared: 2 of its 3 seeds have no value" in lines
    rows = [*csv.DictReader((root / "report/leaderboard.csv").open())]
    assert [row["verdict"] for row in rows[:3]] == ["best", "worse than the best", "not compared"]
    assert [(row["seeds"], row["seeds_missing"]) for row in rows[:3]] == [("3", "0"), ("3", "0"), ("1", "2")]
    assert rows[2]["reason"] == "2 of its 3 seeds have no value" and rows[3]["reason"] == "CUDA ran out of memory"
    assert "| not compared: 2 of its 3 seeds have no value | 1 of 3 |" in (root / "report/leaderboard.md").read_text()
    said = warm("sweep", "best", "sweep").stdout.splitlines()
    assert "--from sweep/6" in said[0] and ", a=2, the mean of 3 seeds" in said[1]
    assert said[2] == "5 jobs have no value yet (2 failed, 3 waiting)" and len(said) == 3


def test_where_no_setting_has_all_seeds(warm: Callable[..., Any], tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", seeds((0.4, None), (0.6, None)))
    said = warm("sweep", "best", "sweep").stdout.splitlines()
    assert ", a=1, though 1 of its 2 seeds have no value, and no setting has all; whether it is really" in said[1]
    assert said[2] == "2 jobs have no value yet (2 failed)"
    lines = warm("sweep", "report", "sweep").stdout.splitlines()
    assert " best " in lines[1] and " 1 of 2 " in lines[1] and " 1 of 2 " in lines[2] and "not compared" in lines[2]


@pytest.mark.parametrize(
    ("metric", "higher", "winner"),
    [("gain_loss", True, 1), ("acc", False, 0), ("parameter", True, 1), ("word_perplexity", None, 0), ("acc", None, 1)],
)
def test_the_task_says_the_direction_before_the_name(
    metric: str, higher: bool | None, winner: int, warm: Callable[..., Any], tmp_path: Path
) -> None:
    jobs = [Job([f"a={place}"], scored(share), higher_is_better=higher) for place, share in enumerate((0.2, 0.9))]
    write_sweep(tmp_path / "sweep", jobs, f"merged/nouns/{metric}", launcher={"_target_": "HereLauncher"})
    assert f"--from sweep/{winner}" in warm("sweep", "best", "sweep").stdout.splitlines()[0]
    assert warm("sweep", "report", "sweep").stdout.splitlines()[1].split()[1] == f"a={winner}"
    status = warm("sweep", "status", "sweep")
    assert f"best so far: job {winner} (a={winner})" in status.stdout, status.stderr
    write_sweep(tmp_path / "asked", jobs, f"merged/nouns/{metric}", "minimize" if winner else "maximize")
    assert f"--from asked/{1 - winner}" in warm("sweep", "best", "asked").stdout.splitlines()[0]
    assert f"best so far: job {1 - winner} " in warm("sweep", "status", "asked").stdout


def test_names_are_whole_words() -> None:
    found = {
        name: least_is_best(f"merged/x/{name}", "auto") for name in ("parameter", "ter", "my_loss", "glossary", "f1")
    }
    assert found == {"parameter": None, "ter": True, "my_loss": True, "glossary": None, "f1": False}
    assert least_is_best(ACC, "minimize") is True
