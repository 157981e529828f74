"""Known paired outcomes give the numbers of scipy, statsmodels and textbooks; chance alone gives no verdicts."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from lm_eval.api import metrics as lm_evals
from scipy import stats

from hydratune.build.statistics import (
    AGGREGATIONS,
    Array,
    aggregate,
    consistency,
    holm,
    paired,
    standard_error,
    verdict,
)

pytestmark = pytest.mark.filterwarnings("error")
Pair = tuple[Array, Array, Array | None]  # scores of base and other, and weights


def outcomes(both: int, lost: int, won: int, neither: int) -> tuple[Array, Array]:
    """0/1 scores of base and other with this table."""
    base, other = np.array([(1, 1)] * both + [(1, 0)] * lost + [(0, 1)] * won + [(0, 0)] * neither, dtype=float).T
    return base, other


@pytest.mark.parametrize(
    ("table", "p"),
    [
        ((794, 150, 86, 570), 3.716e-5),  # Agresti's approval ratings; the value is that of R's exact2x2
        ((59, 6, 16, 80), 0.0525),  # Wikipedia, McNemar's test
        ((101, 121, 59, 33), 4.434e-6),
        ((1, 0, 5, 0), 2 * 0.5**5),
        ((5, 1, 1, 5), 1.0),
        ((7, 0, 0, 2), 1.0),
    ],
)
def test_yes_or_no_is_mcnemars_exact_test(table: tuple[int, int, int, int], p: float) -> None:
    found = paired(*outcomes(*table), None, "mean", seed=0)
    _, lost, won, _ = table
    assert found.test == "exact McNemar"
    assert found.p == pytest.approx(p, rel=2e-3)
    assert found.difference == pytest.approx((won - lost) / sum(table))
    if won + lost:
        assert found.p == pytest.approx(stats.binomtest(won, won + lost).pvalue)
        assert found.effect == pytest.approx(won / (won + lost) - 0.5)


def test_numbers_are_exchanged_by_fishers_test() -> None:
    """Darwin's maize: crossed and self-fertilised plants in 15 pots, an eighth of an inch; Fisher 1935 counts 1726."""
    steps = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=float)
    found = paired(np.zeros(15), steps, None, "mean", seed=0)
    assert (found.test, found.p) == ("exact sign-flip permutation", pytest.approx(1726 / 2**15))
    assert found.effect == pytest.approx(stats.ttest_1samp(steps, 0).statistic / 15**0.5)
    assert found.difference_stderr == pytest.approx(stats.sem(steps))


def test_many_documents_give_what_scipys_permutation_test_gives() -> None:
    random = np.random.default_rng(1)
    base, other = random.normal(size=60), random.normal(0.3, 1, size=60)
    found = paired(base, other, None, "mean", seed=0)
    scipys = stats.permutation_test(
        (base, other), lambda x, y, axis: (y - x).mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=50_000, rng=np.random.default_rng(2),
    )  # fmt: skip
    assert 0.02 < scipys.pvalue < 0.5
    assert found.p == pytest.approx(scipys.pvalue, abs=4 * (scipys.pvalue / 9_999) ** 0.5)


@pytest.mark.parametrize("aggregation", ["mean", "perplexity", "weighted_perplexity"])
def test_the_interval_is_scipys_bootstrap_over_documents(aggregation: str) -> None:
    random = np.random.default_rng(3)
    weights = random.integers(20, 200, size=80).astype(float) if aggregation == "weighted_perplexity" else np.ones(80)
    base = -weights * random.gamma(4, 0.5, size=80)
    other = base + weights * random.normal(0.1, 0.2, size=80)

    def difference(x: Array, y: Array, w: Array, axis: int) -> Array:
        x, y = x.sum(axis=axis) / w.sum(axis=axis), y.sum(axis=axis) / w.sum(axis=axis)
        return y - x if aggregation == "mean" else np.exp(-y) - np.exp(-x)

    scipys = stats.bootstrap(
        (base, other, weights), difference, paired=True, vectorized=True, method="percentile",
        rng=np.random.default_rng(4),
    )  # fmt: skip
    found = paired(base, other, weights if "weighted" in aggregation else None, aggregation, seed=0)
    assert found.difference == pytest.approx(float(difference(base, other, weights, axis=0)))
    near = 0.1 * scipys.standard_error
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(scipys.confidence_interval), abs=near)
    assert found.difference_stderr == pytest.approx(scipys.standard_error, rel=0.05)


def test_alike_documents_are_drawn_as_often_as_single_ones() -> None:
    """The short way for 0/1 metrics has the distribution of the long one: here the binomial's own."""
    found = paired(*outcomes(0, 0, 30, 70), None, "mean", seed=0)
    assert (found.ci_low * 100, found.ci_high * 100) == pytest.approx(stats.binom.interval(0.95, 100, 0.3), abs=1.01)


def test_values_and_errors_are_lm_evals() -> None:
    random = np.random.default_rng(5)
    scores, weights = random.random(50), random.integers(1, 90, size=50).astype(float)
    pairs = list(zip((-scores).tolist(), weights.tolist(), strict=True))
    assert aggregate(-scores, weights, "weighted_perplexity") == pytest.approx(lm_evals.weighted_perplexity(pairs))
    assert aggregate(-scores, weights, "bits_per_byte") == pytest.approx(lm_evals.bits_per_byte(pairs))
    assert aggregate(-scores, None, "perplexity") == pytest.approx(lm_evals.perplexity((-scores).tolist()))
    assert aggregate(scores, None, "mean") == pytest.approx(lm_evals.mean(scores.tolist()))
    assert standard_error(scores, None, "mean", seed=0) == pytest.approx(lm_evals.mean_stderr(scores.tolist()))
    by_hand = np.exp(scores.mean()) * stats.sem(scores)  # the delta method
    assert standard_error(-scores, None, "perplexity", seed=0) == pytest.approx(by_hand, rel=0.05)


def test_holms_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("p", "difference", "higher_is_better", "word"),
    [
        (0.049, 0.1, True, "better"),
        (0.049, -0.1, True, "worse"),
        (0.049, -0.1, False, "better"),
        (0.049, 0.1, False, "worse"),
        (0.049, 0.1, None, "differs"),
        (0.05, 0.1, True, "not distinguishable"),
        (0.05, 0.1, None, "not distinguishable"),
    ],
)
def test_the_verdict_in_words(p: float, difference: float, higher_is_better: bool | None, word: str) -> None:
    assert verdict(p, difference, higher_is_better) == word


def test_a_lower_perplexity_is_a_negative_difference_and_effect() -> None:
    base = -np.random.default_rng(6).gamma(4, 0.5, size=40)
    for aggregation in ("perplexity", "bits_per_byte"):
        found = paired(base, base * 0.9, np.ones(40), aggregation, seed=0)
        assert found.difference < 0 and found.effect < 0 and found.ci_high < 0 and found.p < 0.001


def test_the_detectable_difference_is_that_of_power_tables() -> None:
    """G*Power: d_z = 0.5 at 5%, two-sided, is found with a power of 80% by 34 pairs, and not by 33."""
    for n, enough in ((34, True), (33, False)):
        steps = stats.zscore(np.random.default_rng(7).normal(size=n), ddof=1)
        found = paired(np.zeros(n), steps, None, "mean", seed=0)
        assert (found.detectable <= 0.5) == enough


def test_where_all_documents_agree_a_few_that_do_not_are_the_least_to_be_seen() -> None:
    base = np.ones(100)
    least = paired(base, base, None, "mean", seed=0).detectable
    assert stats.binom.sf(5, 100, least) == pytest.approx(0.8)  # six documents, all one way, are the fewest with p < 5%
    assert stats.binomtest(6, 6).pvalue < 0.05 < stats.binomtest(5, 5).pvalue


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 20])
def test_few_or_equal_documents_give_honest_numbers(n: int, aggregation: str) -> None:
    random = np.random.default_rng(n)
    weights = np.ones(n) * 7
    for base, other in (
        (np.ones(n), np.ones(n)),
        (np.zeros(n), np.ones(n)),
        (np.full(n, 0.3), np.full(n, 0.7)),
        (np.full(n, -900.0), np.full(n, -7000.0)),  # a perplexity that is infinite
        (random.normal(size=n), random.normal(size=n)),
    ):
        found = paired(base, other, weights, aggregation, seed=0)
        if np.isfinite(found.difference):
            json.dumps([asdict(found), standard_error(base, weights, aggregation, seed=0)], allow_nan=False)
        assert found.p >= 2 ** (1 - n) or n == 20
        assert (found.detectable is None) or n >= 6
        if np.ptp(other - base) < 1e-9:
            assert found.ci_low is None and found.difference_stderr is None  # resampling alike ones tells nothing


def test_seeds_give_the_same_numbers_again() -> None:
    random = np.random.default_rng(8)
    base, other = random.normal(size=50), random.normal(0.2, 1, size=50)
    first, again, another = (paired(base, other, None, "mean", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.p, first.ci_low) != (another.p, another.ci_low)


def test_many_documents_take_little_memory_and_time() -> None:
    import tracemalloc

    random = np.random.default_rng(9)
    base = random.normal(size=15_000)
    start = time.process_time()
    tracemalloc.start()
    found = paired(base, base + random.normal(0, 1, size=15_000), None, "mean", seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2**20 and time.process_time() - start < 60
    assert found.test == "sign-flip permutation"


def test_agreement_of_answers() -> None:
    answers = [["a", "b", "c"], ["a", "b", "d"], ["a", "x", "e"], ["a", "b", "f"]]  # four samplings of three documents
    found = consistency([0.5, 0.75, 0.25, 0.5], answers)
    assert found.seed_spread == pytest.approx(np.std([0.5, 0.75, 0.25, 0.5], ddof=1))
    assert found.same_answers == pytest.approx(1 / 3)
    assert found.agreement == pytest.approx((1 + 3 / 6 + 0) / 3)


# the null experiment: a model against itself, which differs by its sampling alone


def sampled_once(random: np.random.Generator) -> Pair:
    chance = random.beta(1, 1, size=100)
    return (random.random(100) < chance) * 1.0, (random.random(100) < chance) * 1.0, None


def sampled_four_times(random: np.random.Generator) -> Pair:
    chance = random.beta(0.5, 0.5, size=50)
    return random.binomial(4, chance) / 4, random.binomial(4, chance) / 4, None


def skewed(random: np.random.Generator) -> Pair:
    level = random.lognormal(size=40)
    return level * random.lognormal(size=40), level * random.lognormal(size=40), None


def perplexities(random: np.random.Generator) -> Pair:
    words = random.integers(20, 400, size=40).astype(float)
    level = random.gamma(9, 0.3, size=40)
    return -words * (level + random.normal(0, 0.2, 40)), -words * (level + random.normal(0, 0.2, 40)), words


SAMPLED: dict[Callable[[np.random.Generator], Pair], str] = {
    sampled_once: "mean", sampled_four_times: "mean", skewed: "mean", perplexities: "weighted_perplexity",
}  # fmt: skip


def found_in(pairs: list[Pair], aggregation: str) -> float:
    """The share of `pairs` that get a verdict."""
    verdicts = [
        verdict(found.p, found.difference, True)
        for base, other, weights in pairs
        if (found := paired(base, other, weights, aggregation, seed=0))
    ]
    return sum(word != "not distinguishable" for word in verdicts) / len(verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLED)
def test_chance_alone_is_called_better_or_worse_in_one_of_twenty_at_most(
    kind: Callable[[np.random.Generator], Pair],
) -> None:
    random = np.random.default_rng(10)
    assert found_in([kind(random) for _ in range(200)], SAMPLED[kind]) <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5


@pytest.mark.slow
def test_a_table_of_many_comparisons_is_wrong_as_rarely() -> None:
    random, wrong = np.random.default_rng(11), 0
    for _ in range(200):
        corrected = holm([paired(*sampled_once(random), "mean", seed=0).p for _ in range(5)])
        wrong += min(corrected) < 0.05
    assert wrong / 200 <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLED)
def test_a_real_effect_is_found(kind: Callable[[np.random.Generator], Pair]) -> None:
    """Of twice the size that is said to be detectable: in most; of that size: in about four of five."""
    random, aggregation = np.random.default_rng(12), SAMPLED[kind]
    for times, least, most in ((1, 0.65, 0.92), (2, 0.97, 1.0)):
        pairs = []
        for _ in range(150):
            base, other, weights = kind(random)
            size = paired(base, other, weights, aggregation, seed=0).detectable * times
            if kind is sampled_once:  # of as many documents on which the two differ, more speak for the other
                lost, neither = (np.flatnonzero((base == one) & (other == 0)) for one in (1, 0))
                places = np.concatenate([lost, neither])[: round(size * len(base) / 2)]
                base[places], other[places] = 0, 1
            elif aggregation == "mean":
                other = other + size
            else:
                aimed = aggregate(base, weights, aggregation) + size
                other = other - weights * np.log(aimed / aggregate(base, weights, aggregation))
            pairs.append((base, other, weights))
        assert least <= found_in(pairs, aggregation) <= most


@pytest.mark.slow
@pytest.mark.parametrize("kind", [sampled_once, perplexities])
def test_the_interval_covers_the_truth(kind: Callable[[np.random.Generator], Pair]) -> None:
    """The two are the same model, so the true difference is 0; small samples make any bootstrap a little narrow."""
    random, covered = np.random.default_rng(13), 0
    for _ in range(300):
        found = paired(*kind(random), SAMPLED[kind], seed=0)
        covered += found.ci_low <= 0 <= found.ci_high
    assert covered / 300 >= 0.95 - 3 * (0.95 * 0.05 / 300) ** 0.5
