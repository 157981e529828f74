"""`hydratune sweep report` and `sweep best` on folders that are written by hand, and the files that real runs leave."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydratune.build import leaderboard
from hydratune.build.units import Units, read_units
from hydratune.config.schema import ConfigError
from hydratune.sweep import leaderboard_text
from hydratune.sweep.report import best, report
from tests.sweeps_on_disk import ACC, LOSS, Job, write_sweep

PNG = b"\x89PNG"


def scored(*shares: float, n: int = 100) -> list[list[float]]:
    """0/1 scores of the same documents, the first so many of them right."""
    return [[float(place < share * n) for place in range(n)] for share in shares]


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that a verb prints."""

    def call(verb: Callable[[list[str]], None], *words: Any) -> list[str]:
        verb([str(word) for word in words])
        return capfd.readouterr().out.splitlines()

    return call


def table(root: Path) -> list[dict[str, str]]:
    return [*csv.DictReader((root / "report/leaderboard.csv").open())]


def test_words_are_those_of_the_verdicts() -> None:
    for name in ("BEST", "EQUAL", "WORSE"):
        assert getattr(leaderboard, name) == getattr(leaderboard_text, name)


def test_the_leaderboard(said: Callable[..., list[str]], tmp_path: Path) -> None:
    jobs = [
        Job([f"lora.r={r}", f"+data.path={path}"], scores, higher_is_better=True)
        for r, path, scores in zip((4, 8, 128), ("a", "b", "a"), scored(0.3, 0.9, 0.85), strict=True)
    ]
    jobs += [
        Job(["lora.r=256", "+data.path=a"], state="failed", cause="CUDA ran out of memory"),
        Job(["lora.r=256", "+data.path=b"], state="waiting"),
    ]
    root = write_sweep(tmp_path / "sweep", jobs)
    lines = said(report, root)
    assert lines[0].split() == [
        "rank",
        "setting",
        ACC,
        *["difference", "[95%", "interval]", "p", "verdict", "seeds", "jobs", "seconds"],
    ]
    assert lines[1].split() == ["1", "lora.r=8", "+data.path=b", "0.900", "±", "0.030", "best", "1", "1", "2"]
    assert "0.850 ± 0.036" in lines[2] and "can't be told from the best" in lines[2]
    assert "-0.600 [-0." in lines[3] and "<0.001" in lines[3] and "worse than the best" in lines[3]
    text = "\n".join(lines)
    assert "the same 100 documents (exact McNemar test; p corrected for all 3 pairs" in text
    assert "so its value is optimistic: measure it once on a test set" in text and "one seed each" in text
    assert "jobs without a value: 1 failed, 1 waiting" in lines
    assert "  job 3 (lora.r=256 +data.path=a) failed: CUDA ran out of memory" in lines
    rows = table(root)
    assert [row["rank"] for row in rows] == ["1", "2", "3", "", ""]
    assert [row["lora.r"] for row in rows] == ["8", "128", "4", "256", "256"]
    assert rows[0][ACC] == "0.9" and rows[2]["verdict"] == "worse than the best" and rows[3]["verdict"] == "failed"
    assert float(rows[2]["difference"]) == pytest.approx(-0.6) and rows[3]["reason"] == "CUDA ran out of memory"
    markdown = (root / "report/leaderboard.md").read_text()
    assert "| 1 | lora.r=8 +data.path=b | 0.900 ± 0.030 |" in markdown
    assert "| 3 | lora.r=256 +data.path=a | failed | CUDA ran out of memory |" in markdown
    pytest.importorskip("matplotlib")
    assert sorted(path.name for path in (root / "report").glob("*.png")) == ["data.path.png", "lora.r.png"]
    assert all(path.read_bytes().startswith(PNG) for path in (root / "report").glob("*.png"))


def test_the_axis_of_a_figure() -> None:
    pytest.importorskip("matplotlib")
    from hydratune.build.figure import _numbers, _zoom, figure
    from hydratune.build.leaderboard import Finished, Row

    rows = [Row((), [Finished(0, None, value, 1.0)], stderr=0.1) for value in (1.0, 1.1, 1.2, 1.3, 90.0)]
    for values in (["1e-5", "1e-4", "1e-3", "1", "2"], ["a", "b", "a", "8", "[q,v]"], ["0", "0.1", "0.2", "0", "0"]):
        assert figure("key", values, rows, "loss", True).startswith(PNG)
    assert _numbers(["1", "2e-3"]) is not None and _numbers(["0", "0.1"]) is not None
    assert _numbers(["0", "0.001", "1"]) is None, "a log axis has no 0"

    class Axes:
        def set_ylim(self, low: float, high: float) -> None:
            self.limits = low, high

    axes, heights = Axes(), np.array([1.0, 1.1, 1.2, 1.3, 90.0])
    assert _zoom(axes, heights, np.zeros(5), True) == 1 and axes.limits[1] < 2
    assert _zoom(axes, heights[:4], np.zeros(4), True) == 0


def test_without_matplotlib(said: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    jobs = [Job([f"a={place}"], scores) for place, scores in enumerate(scored(0.5, 0.6))]
    root = write_sweep(tmp_path / "sweep", jobs)
    assert said(report, root)[-1].startswith("no figures, which need matplotlib: pip install 'hydratune[report]'")
    assert len(table(root)) == 2 and not [*root.rglob("*.png")]


def test_seeds_are_one_row(said: Callable[..., list[str]], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    jobs = [
        Job([f"lora.r={r}", f"seed={seed}"], random.normal(size=40) ** 2 + 9 * (r == 4) + 10, np.full(40, 2.0))
        for r in (4, 8)
        for seed in (1, 2, 3)
    ]
    root = write_sweep(tmp_path / "sweep", jobs, LOSS)
    lines = said(report, root)
    assert lines[1].split()[:2] == ["1", "lora.r=8"] and " 3 (sd 0." in lines[1] and "  3 4 5  " in lines[1]
    assert "worse than the best" in lines[2] and "40 rows (sign-flip permutation and t over seeds test" in "".join(
        lines
    )
    assert "one seed" not in "".join(lines)
    assert [row["jobs"] for row in table(root)] == ["3 4 5", "0 1 2"]
    assert said(best, root)[0] == f"hydratune --from {root}/3"


def test_best(said: Callable[..., list[str]], tmp_path: Path) -> None:
    jobs = [Job(["a=1"], scored(0.2)[0]), Job(["a=[x, 'y']"], scored(0.9)[0]), Job(["a=3"], scored(0.88)[0])]
    root = write_sweep(tmp_path / "my sweep", jobs)
    lines = said(best, root)
    assert lines[0] == f"hydratune --from '{root}/1'"  # there is no key a: its words give no such run
    assert lines[1] == f"{ACC} 0.900 ± 0.030, a=[x, 'y']; 1 of the 2 other settings can't be told from it"
    assert not (root / "report").exists()


def test_nothing_is_told_apart_without_units(said: Callable[..., list[str]], tmp_path: Path) -> None:
    jobs = [Job([f"a={value}"], value=value) for value in (2.0, 1.0)]
    root = write_sweep(tmp_path / "sweep", jobs, "train/loss")
    lines = said(report, root)
    assert lines[1].split()[:3] == ["1", "a=1.0", "1"] and "not compared" in lines[2]
    assert "which settings are really worse can't be told: train/loss is not kept by documents or rows" in lines
    root = write_sweep(tmp_path / "old", jobs, LOSS)
    assert "which settings are really worse can't be told: there is no validation.npz" in said(report, root)
    assert said(best, root)[1].endswith("the others (1) can't be told: there is no validation.npz")


def test_some_have_no_units_and_some_diverged(said: Callable[..., list[str]], tmp_path: Path) -> None:
    good, worse = np.full(30, 2.0) + np.arange(30) / 99, np.full(30, 4.0) + np.arange(30) / 70
    ones = np.ones(30)
    jobs = [
        Job(["a=1"], worse, ones),
        Job(["a=2"], good, ones),
        Job(["a=3"], value=2.5),
        Job(["a=4"], value=float("nan")),
    ]
    jobs.append(Job(["a=5"], worse, ones, asked="others"))
    root = write_sweep(tmp_path / "sweep", jobs, LOSS)
    lines = said(report, root)
    assert [row["verdict"] for row in table(root)] == [
        "best",
        "not compared",
        "worse than the best",
        "not compared",
        "done",
    ]
    assert "1 not compared: there is no validation.npz" in lines
    assert "1 not compared: it was asked about other rows than the best, or in another way" in lines
    assert f"  job 3 (a=4) done: its objective is {LOSS}, nan" in lines


def test_the_direction(said: Callable[..., list[str]], tmp_path: Path) -> None:
    jobs = [Job([f"a={place}"], scores) for place, scores in enumerate(scored(0.2, 0.9))]
    root = write_sweep(tmp_path / "sweep", jobs, "merged/nouns/goodness")
    with pytest.raises(
        ConfigError, match=r"Whether a higher merged/nouns/goodness is better is not known: type .* direction="
    ):
        report([str(root)])
    assert said(report, root, "direction=minimize")[1].split()[1] == "a=0"
    assert said(report, root, "direction=maximize")[1].split()[1] == "a=1"
    for job in jobs:
        job.higher_is_better = False
    assert said(report, write_sweep(tmp_path / "told", jobs, "merged/nouns/goodness"))[1].split()[1] == "a=0"
    assert said(report, write_sweep(tmp_path / "typed", jobs, direction="minimize"))[1].split()[1] == "a=0"


def test_mistakes(tmp_path: Path) -> None:
    def sentence(*words: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            report([str(word) for word in words])
        return str(caught.value)

    assert sentence(tmp_path / "x") == f"{tmp_path}/x holds no sweep: there is no {tmp_path}/x/sweep.json."
    assert sentence() == "sweep report takes one folder of a sweep: hydratune sweep report DIR."
    assert sentence("a", "direction=up") == "direction=up must be minimize or maximize."
    assert "no b=…" in sentence("a", "b=1")
    root = write_sweep(tmp_path / "sweep", [Job(["a=1"], state="waiting"), Job(["a=2"], state="failed")])
    assert sentence(root).startswith(f"Nothing has finished yet in {root} (1 waiting, 1 failed): ")
    root = write_sweep(tmp_path / "nan", [Job(["a=1"], value=float("inf"))], LOSS)
    assert "No job" in sentence(root)
    root = write_sweep(tmp_path / "full", [Job(["a=1"], scored(0.2)[0])])
    (root / "report").write_text("in the way")
    assert sentence(root).startswith(f"{root}/report can't be written (")


def test_few_jobs_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their number: in parts they give what they give at once."""
    random = np.random.default_rng(0)
    jobs = [Job([f"a={place}"], random.normal(size=50) + place / 9, np.ones(50)) for place in range(30)]
    root = write_sweep(tmp_path / "sweep", jobs, LOSS)
    report([str(root)])
    whole = (root / "report/leaderboard.csv").read_text()
    most, read, held = 0, leaderboard._read, []

    class Counting(leaderboard._Comparison):
        def add(self, some: Any) -> None:
            nonlocal most
            most = max(most, len(some))
            held.append(len(some))
            super().add(some)

    monkeypatch.setattr(leaderboard, "_Comparison", Counting)
    monkeypatch.setattr(leaderboard, "CHUNK", 4 * 50 * 7)
    report([str(root)])
    assert (most, sum(held)) == (7, 29) and read is leaderboard._read
    assert (root / "report/leaderboard.csv").read_text() == whole


@pytest.mark.slow
def test_the_rows_give_the_validation_loss(
    tiny: Path, rows: Path, hydratune: Callable[..., Any], tmp_path: Path
) -> None:
    done = hydratune(
        "model=local", f"model.name_or_path={tiny}", f"data.path={rows}", "lora=all_linear", "stages=[prepare,train]",
        "run_dir=run", "trainer.max_length=128", "trainer.max_steps=2", "data.validation_share=0.3",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_units(tmp_path / "run/validation.npz", LOSS)
    assert isinstance(found, Units) and found.unit == "row" and found.asked.strip()
    assert found.value == pytest.approx(json.loads((tmp_path / "run/metrics.json").read_text())[LOSS], rel=1e-12)


@pytest.mark.parametrize("padding_free", [None, False])
def test_each_row_has_its_own_loss(padding_free: bool | None, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """In one line and padded: that of the row by itself through the model; without the lean loss, of each batch."""
    import torch

    from hydratune.build.collate import Collator
    from hydratune.build.hardware import resolve
    from hydratune.config.schema import Config
    from hydratune.run.layout import RunDir
    from hydratune.stages import prepare, train

    config, run = Config(cache_dir=str(tmp_path / "cache")), RunDir(tmp_path / "run")
    config.model.name_or_path, config.data.path, config.lora.kind = str(tiny), str(rows), "lora"
    config.data.validation_share, config.data.padding_free = 0.3, padding_free
    config.trainer.per_device_eval_batch_size = 3
    prepare.run(config, run, resolve(config))
    trainer: Any = train.build_trainer(config, run, resolve(config))
    loss = train._write_validation(trainer, run)
    found = read_units(run.validation, LOSS)
    assert isinstance(found, Units) and found.unit == "row" and found.value == pytest.approx(loss, rel=1e-12)
    trainer.model.eval()
    for row, total, tokens in zip(trainer.eval_dataset, found.values, found.weights, strict=True):
        batch = Collator(0)([row])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = trainer.model(**batch, use_cache=False).logits[0, :-1].float()
        wanted = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        assert (total, tokens) == (pytest.approx(float(wanted), rel=1e-4), int((labels != -100).sum()))
    trainer.proven = trainer.lean = False
    plain = trainer.evaluate()["eval_loss"]
    assert plain == pytest.approx(loss, rel=1e-5)
    batches = trainer.validated[trainer.state.global_step]
    assert batches.unit == "batch" and batches.asked != found.asked and batches.value == plain
    assert batches.weights.tolist() == [found.weights[at : at + 3].sum() for at in range(0, len(found.weights), 3)]
