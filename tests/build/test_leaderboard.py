"""Settings against the best: who is told apart, and how often wrongly."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from hydratune.build import pairwise
from hydratune.build.leaderboard import EQUAL, NOT_COMPARED, WORSE, Board, Finished, Row, leaderboard
from hydratune.build.scores import read_scores
from hydratune.build.units import Units, packed, read_units, units_of
from tests.samples_on_disk import task, write_model

Array = np.ndarray
REPEATS = 200


def units(values: Array, weights: Array | None = None, asked: str = "same", aggregation: str = "mean") -> Units:
    return Units(
        np.asarray(values, float), weights, aggregation, None, asked, "row" if weights is not None else "document"
    )


def board(settings: list[list[Units]], lower: bool = False) -> Board:
    """Of each setting, one Units a seed."""
    rows, known = [], {}
    for place, seeds in enumerate(settings):
        row = Row((f"x={place}",))
        for seed, one in enumerate(seeds):
            known[number := place * 100 + seed] = one
            row.jobs.append(Finished(number, str(seed), one.value, 1.0))
        rows.append(row)
    return leaderboard(rows, lower, known.__getitem__)


def wrongly_told(made: Callable[[np.random.Generator], list[list[Units]]]) -> float:
    """The share of sweeps of equal settings in which any is called worse."""
    random = np.random.default_rng(0)
    return float(np.mean([any(row.verdict == WORSE for row in board(made(random)).rows) for _ in range(REPEATS)]))


def right(random: np.random.Generator, n: int = 200) -> list[list[Units]]:
    """Of 8 equal settings: 0/1 on the same documents, some of them harder."""
    hard = random.normal(size=n)
    return [[units(hard + random.normal(size=n) > 0)] for _ in range(8)]


def losses(random: np.random.Generator, n: int = 60) -> list[list[Units]]:
    """Of 8 equal settings: skewed losses of rows."""
    hard, tokens = random.normal(size=n), random.integers(5, 50, n).astype(float)
    return [[units(tokens * np.exp(hard + random.normal(size=n) / 2), tokens)] for _ in range(8)]


def seeded(spread: float) -> Callable[[np.random.Generator], list[list[Units]]]:
    """Of 8 equal settings with 3 seeds, which move all documents by `spread`."""

    def made(random: np.random.Generator, n: int = 100) -> list[list[Units]]:
        found = []
        for _ in range(8):
            own = random.normal(size=n)  # what a setting makes of a document, whatever the seed
            found.append([units(own + spread * random.normal() + random.normal(size=n) / 2) for _ in range(3)])
        return found

    return made


ALIKE = 0.1 * 3**0.5  # then seeds and documents move the mean equally


@pytest.mark.parametrize("made", [right, losses, seeded(0.0), seeded(ALIKE), seeded(1.0)])
def test_equal_settings_are_rarely_called_worse(
    made: Callable[[np.random.Generator], list[list[Units]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the best of them is chosen by the same numbers: at most 5%, as far as so many repetitions can tell."""
    monkeypatch.setattr(pairwise, "RESAMPLES", (999, 9_999))  # enough for 28 pairs
    assert wrongly_told(made) <= stats.binom.ppf(0.99, REPEATS, 0.05) / REPEATS


def test_a_better_setting_is_found() -> None:
    random = np.random.default_rng(0)
    hard = random.normal(size=300)
    settings = [[units(hard + random.normal(size=300) / 2 + good > 0)] for good in (0, 0, 1.5, 0, 1.45)]
    found = board(settings)
    names = [row.overrides[0] for row in found.rows]
    assert set(names[:2]) == {"x=2", "x=4"}
    assert [row.verdict for row in found.rows] == ["best", EQUAL, WORSE, WORSE, WORSE]
    assert (found.units, found.test, found.compared) == ("300 documents", "exact McNemar", 4)
    last = found.rows[-1]
    assert last.ci_low < last.difference < last.ci_high < 0 and last.p < 0.001


def test_a_loss_is_weighted_by_tokens() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(1, 100, 50).astype(float)
    one, other = (units(tokens * random.uniform(1, 2, 50), tokens) for _ in range(2))
    found = board([[one], [other]], lower=True)
    assert found.rows[0].value == min(one.values.sum() / tokens.sum(), other.values.sum() / tokens.sum())
    assert found.rows[1].difference == pytest.approx(abs(one.value - other.value))
    drawn = random.integers(0, 50, (4000, 50))
    means = found.rows[0] and one.values[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    assert stats.sem(one.contributions()) == pytest.approx(means.std(), rel=0.06)


@pytest.mark.parametrize("aggregation", ["perplexity", "bits_per_byte"])
def test_errors_are_of_the_metric_itself(aggregation: str) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(20, 90, 80).astype(float) if aggregation == "bits_per_byte" else None
    one = units(-random.uniform(1, 3, 80) * (1 if lengths is None else lengths), lengths, aggregation=aggregation)
    drawn = [units(one.values[i], None if lengths is None else lengths[i], aggregation=aggregation).value
             for i in random.integers(0, 80, (3000, 80))]  # fmt: skip
    assert one.contributions().mean() == pytest.approx(one.value)
    assert stats.sem(one.contributions()) == pytest.approx(np.std(drawn), rel=0.06)


def test_seeds_are_one_setting() -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=100)
    found = board(
        [[units(base + 3 + s) for s in (-0.1, 0.0, 0.1)], [units(base + s) for s in (0.2, -0.2)], [units(base)]]
    )
    best, two, one = found.rows[0], *sorted(found.rows[1:], key=lambda row: -len(row.jobs))
    assert best.value == pytest.approx(base.mean() + 3) and best.seed_sd == pytest.approx(0.1)
    assert two.seed_sd == pytest.approx(0.2 * 2**0.5) and one.seed_sd is None
    assert two.verdict == one.verdict == WORSE
    # documents say that the difference is the same in all; what is left is the seeds'
    welch = stats.ttest_ind([2.9, 3, 3.1], [0.2, -0.2], equal_var=False).confidence_interval()
    assert (-two.ci_high, -two.ci_low) == pytest.approx((welch.low, welch.high))


def test_a_difference_within_the_spread_of_seeds_is_none() -> None:
    """Though each document speaks for it."""
    base = np.random.default_rng(0).normal(size=500)
    found = board([[units(base + s) for s in (0.0, 1.0, 2.0)], [units(base + s) for s in (-0.5, 0.5, 1.5)]])
    assert found.rows[1].verdict == EQUAL and found.rows[1].ci_high > 0
    assert board([[units(base + 1)], [units(base + 0.5)]]).rows[1].verdict == WORSE


def test_only_like_is_compared() -> None:
    random = np.random.default_rng(0)
    a, b, c = (random.normal(size=50) for _ in range(3))
    found = board([[units(a + 5)], [units(b)], [units(c - 1, asked="another")]])
    assert [row.verdict for row in found.rows] == ["best", WORSE, NOT_COMPARED]
    assert "other documents" in found.rows[2].reason and found.compared == 1
    rows = [Row(("x=1",), [Finished(0, None, 9.0, 1.0)]), Row(("x=2",), [Finished(1, None, 1.0, 1.0)])]
    found = leaderboard(rows, False, lambda number: units(a))
    assert found.reason == "its documents are not those that gave its value"
    assert leaderboard([], False, lambda number: "") == Board([])


def test_units_survive_the_disk(tmp_path) -> None:
    path, one = tmp_path / "x.npz", units(np.array([0.1, 2.0, 0.0]), np.array([1.0, 2.0, 3.0]))
    path.write_bytes(packed({"merged/a/acc,none": one, "merged/a/bleu": "it is no mean"}))
    found = read_units(path, "merged/a/acc,none")
    assert isinstance(found, Units) and (found.values == one.values).all() and (found.weights == one.weights).all()
    assert (found.aggregation, found.asked, found.unit) == ("mean", "same", "row")
    assert read_units(path, "merged/a/bleu") == "it is no mean"
    assert read_units(path, "merged/a/f1") == "x.npz has no merged/a/f1"
    assert read_units(tmp_path / "y.npz", "a") == "there is no y.npz"
    path.write_bytes(path.read_bytes()[:-30])
    assert read_units(path, "merged/a/bleu") == "x.npz is damaged"


def test_units_of_a_benchmark(tmp_path) -> None:
    """The same questions have the same digest in two runs, whatever the answers."""
    for run, shots, right in (("a", 0, 0.3), ("b", 0, 0.7), ("c", 2, 0.7)):
        scores = [float(place < 20 * right) for place in range(20)]
        bleu = task([1.0] * 20, metric="bleu", aggregation="bleu", value=55.0)
        group = {"both": {"value": {"acc,none": right}, "subtasks": ["nouns"]}}
        write_model(tmp_path / run, "merged", {"nouns": task(scores, shots=shots), "texts": bleu}, group)
    a, b, c = (units_of({"merged": read_scores(tmp_path / run / "benchmark", "merged")}) for run in "abc")
    assert [*a] == ["merged/both/acc", "merged/nouns/acc", "merged/texts/bleu"]
    assert a["merged/texts/bleu"] == "bleu is no mean of the documents' scores"
    for name in ("merged/both/acc", "merged/nouns/acc"):
        assert (a[name].value, b[name].value, a[name].higher_is_better) == (
            pytest.approx(0.3),
            pytest.approx(0.7),
            True,
        )
        assert a[name].asked == b[name].asked != c[name].asked
