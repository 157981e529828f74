"""Statistics of documents' scores: the error of one model's metric, and two models on the same documents."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from hydratune.build.units import AGGREGATED

LEVEL, POWER = 0.05, 0.8
RESAMPLES = 9_999
FINE_RESAMPLES = 99_999  # where p is small: below 2e-4 the coarse test sees nothing, which Holm over many rows asks for
CHUNK = 4_000_000  # numbers in memory at once
FEWEST = 6  # documents that must all speak for one model before an exact paired test can reach LEVEL: 2 / 2**6

Array = np.ndarray[Any, Any]
# lm-eval's aggregations that are a function of one mean over documents, weighted by their length in the last two
AGGREGATIONS: dict[str, Callable[[Any], Any]] = {name: function for name, (function, _) in AGGREGATED.items()}


@dataclass(frozen=True)
class Paired:
    """Another model against the base, on the same documents. None: these documents can't tell."""

    difference: float
    difference_stderr: float | None
    ci_low: float | None  # 95%
    ci_high: float | None
    p: float  # two-sided, of the test named by `test`
    test: str
    effect_size: str  # what `effect` is
    effect: float | None
    detectable: float | None  # the smallest true difference that is found at 5% with a power of 80%


@dataclass(frozen=True)
class Consistency:
    """Several samplings of the same documents. Agreement is of answers, in [0, 1]."""

    seed_spread: float  # standard deviation of the metric between samplings
    same_answers: float  # share of documents whose answers are all the same
    agreement: float  # share of pairs of answers to one document that are the same, mean over documents


def aggregate(values: Array, weights: Array | None, aggregation: str) -> float:
    """The metric of documents with these scores; `weights` are their lengths, where the aggregation asks for them."""
    with np.errstate(over="ignore"):
        return float(AGGREGATIONS[aggregation](values.sum() / (len(values) if weights is None else weights.sum())))


def standard_error(values: Array, weights: Array | None, aggregation: str, seed: int) -> float | None:
    """Of the metric, over documents; None of a single one."""
    if len(values) < 2:
        return None
    if aggregation == "mean":
        return float(stats.sem(values))
    (resampled,) = _resampled([values], weights, aggregation, seed)
    return _finite(resampled.std(ddof=1))


def paired(base: Array, other: Array, weights: Array | None, aggregation: str, seed: int) -> Paired:
    """The metric of `other` less that of `base`, per document the same in both."""
    steps = other - base if aggregation == "mean" else base - other  # in the metric's own direction
    difference = aggregate(other, weights, aggregation) - aggregate(base, weights, aggregation)
    varies = bool(np.ptp(steps) > 1e-12 * max(1.0, float(np.abs(steps).max())))
    error, low, high = None, None, None
    if varies:
        if aggregation == "mean":
            (resampled,) = _resampled([steps], None, aggregation, seed)
            error = _finite(stats.sem(steps))
        else:
            resampled = np.subtract(*_resampled([other, base], weights, aggregation, seed))
            error = _finite(resampled.std(ddof=1))
        # an endpoint between two resampled values would be no value that resampling has found
        low, high = map(_finite, np.quantile(resampled, [LEVEL / 2, 1 - LEVEL / 2], method="inverted_cdf"))
    if aggregation == "mean" and np.isin([base, other], (0, 1)).all():
        lost, won = int(((base == 1) & (other == 0)).sum()), int(((base == 0) & (other == 1)).sum())
        p, test = float(mcnemar([[0, lost], [won, 0]], exact=True).pvalue), "exact McNemar"
        effect_size, effect = "Cohen's g", won / (won + lost) - 0.5 if won + lost else None
        detectable = _detectable_share(len(steps), (won + lost) / len(steps))
    else:
        p, test = _sign_flip(steps, seed)
        effect_size, effect = "Cohen's d_z", _finite(steps.mean() / steps.std(ddof=1)) if varies else None
        detectable = _standardized(len(steps)) * error * len(steps) ** 0.5 if error and len(steps) >= FEWEST else None
        if detectable is not None and aggregation == "mean":  # as many must differ as of a 0/1 metric
            detectable = max(detectable, _least_share(len(steps)) * float(np.abs(steps[steps != 0]).mean()))
    return Paired(difference, error, low, high, p, test, effect_size, effect, detectable)


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p values, corrected for being several."""
    return [float(p) for p in multipletests(p_values, LEVEL, method="holm")[1]] if p_values else []


def verdict(p_corrected: float, difference: float, higher_is_better: bool | None) -> str:
    """In words; "differs" where the metric doesn't say which way is better."""
    if p_corrected >= LEVEL or difference == 0:
        return "not distinguishable"
    if higher_is_better is None:
        return "differs"
    return "better" if (difference > 0) == higher_is_better else "worse"


def consistency(metrics: Sequence[float], answers: Sequence[Sequence[str]]) -> Consistency:
    """Of two samplings or more: the metric of each, and its answers to the documents."""
    shares, same = [], 0
    for document in zip(*answers, strict=True):
        counts = Counter(document).values()
        same += len(counts) == 1
        shares.append(sum(n * (n - 1) for n in counts) / (len(document) * (len(document) - 1)))
    return Consistency(float(np.std(metrics, ddof=1)), same / len(shares), float(np.mean(shares)))


def _resampled(scores: list[Array], weights: Array | None, aggregation: str, seed: int) -> list[Array]:
    """The metric of each of `scores` on documents drawn with replacement, the same draws for all (bootstrap)."""
    n = len(scores[0])
    table = np.column_stack([*scores, np.ones(n) if weights is None else weights])
    random, chunks = np.random.default_rng(seed), []
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    few = 8 * len(kinds) < n  # how often each kind is drawn is then all there is to draw: milliseconds for 0/1 metrics
    for drawn in _chunks(RESAMPLES, len(kinds) if few else n):
        if few:
            sums = random.multinomial(n, counts / n, size=drawn) @ kinds
        else:
            documents = random.integers(0, n, (drawn, n), dtype=np.int32)
            sums = np.column_stack([column[documents].sum(axis=1) for column in np.ascontiguousarray(table.T)])
        chunks.append(sums[:, :-1] / sums[:, -1:])
    with np.errstate(over="ignore"):
        return list(AGGREGATIONS[aggregation](np.concatenate(chunks)).T)


def _sign_flip(steps: Array, seed: int) -> tuple[float, str]:
    """Two-sided p where each document's two scores could as well be exchanged, and the test's name.

    An exchange turns the sign of the document's step; all of the aggregations rise or fall with the sum of the steps.
    """
    moved = steps[steps != 0]
    if len(moved) < 2:  # of one document, either sign is as likely
        return 1.0, "exact sign-flip permutation"
    if 2 ** len(moved) <= FINE_RESAMPLES:
        exact = stats.permutation_test((moved,), _sum, permutation_type="samples", n_resamples=np.inf, vectorized=True)
        return float(exact.pvalue), "exact sign-flip permutation"
    random, sizes, p = np.random.default_rng(seed), np.abs(moved), 1.0

    def drawn(size: tuple[int, ...]) -> Array:
        return random.integers(0, 2, size, dtype=np.int8)

    def gained(upwards: Array, axis: int) -> Any:
        return upwards @ sizes  # what goes upwards; the rest of the sum goes downwards

    # the distribution that permutation_test draws too, but that takes ten times as long for many documents
    for resamples in (RESAMPLES, FINE_RESAMPLES):
        batch = max(1, CHUNK // len(moved))
        p = stats.monte_carlo_test(moved > 0, drawn, gained, n_resamples=resamples, vectorized=True, batch=batch).pvalue
        if p > LEVEL / 5:
            break
    return float(p), "sign-flip permutation"


def _sum(values: Array, axis: int) -> Any:
    return values.sum(axis=axis)


def _chunks(total: int, width: int) -> list[int]:
    """`total` split into parts that hold at most CHUNK numbers, of rows with `width` numbers."""
    rows = max(1, CHUNK // width)
    return [min(rows, total - start) for start in range(0, total, rows)]


@lru_cache(maxsize=1024)
def _standardized(n: int) -> float:
    """The smallest mean, in standard deviations, that a paired test of `n` documents finds."""
    size = TTestPower().solve_power(nobs=n, alpha=LEVEL, power=POWER, alternative="two-sided")
    return float(np.ravel(size)[0])  # a number or an array of one, as the solver pleases


def _detectable_share(n: int, discordant: float) -> float | None:
    """Of a 0/1 metric, given the share of documents on which the two models differ.

    The variance of the steps is that share less the squared difference. A difference needs as large a share at least:
    where all differing documents speak for one model, at least FEWEST of them must differ.
    """
    if n < FEWEST:
        return None
    scale = _standardized(n)
    return max(_least_share(n), scale * (discordant / (1 + scale**2)) ** 0.5)


def _least_share(n: int) -> float:
    """The share of documents that must differ, so that P(Binomial(n, share) >= FEWEST) = POWER."""
    return float(stats.beta.ppf(POWER, FEWEST, n - FEWEST + 1))


def _finite(number: Any) -> float | None:
    return float(number) if np.isfinite(number) else None
