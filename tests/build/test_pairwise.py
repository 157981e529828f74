"""Tests of many pairs at once: the same as those of single pairs, and their correction."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as single_mcnemar

from hydratune.build import pairwise, statistics
from hydratune.build.pairwise import corrected, mcnemar, sign_flip


def test_the_level_is_that_of_compare() -> None:
    assert pairwise.LEVEL == statistics.LEVEL


def test_mcnemar_is_that_of_single_pairs() -> None:
    lost, won = np.array([0, 3, 5, 0, 40]), np.array([0, 3, 9, 12, 61])
    wanted = [single_mcnemar([[0, a], [b, 0]], exact=True).pvalue for a, b in zip(lost, won, strict=True)]
    assert mcnemar(lost, won) == pytest.approx(wanted)


@pytest.mark.parametrize("n", [4, 10, 40])
def test_sign_flip_is_that_of_single_pairs(n: int) -> None:
    random = np.random.default_rng(n)
    steps = random.normal(size=(6, n)) + np.linspace(0, 0.6, 6)[:, None]
    steps[0] = 0
    found = sign_flip(steps, 1)
    assert found[0] == 1
    for line, p in zip(steps[1:], found[1:], strict=True):
        wanted = statistics.paired(np.zeros(n), line, None, "mean", 1).p
        decided = wanted < pairwise.LEVEL / 5  # then a bound may have been enough
        assert (wanted * 0.8 <= p < pairwise.LEVEL) if decided else p == pytest.approx(wanted, abs=0.015)


def test_the_bound_is_never_below_the_exact_p() -> None:
    random = np.random.default_rng(0)
    steps = random.exponential(size=(200, 12)) * random.choice([-1, 1], (200, 12), p=[0.2, 0.8])
    exact = sign_flip(steps, 0)  # of all 4,096 signs, since nothing is decided for no pairs
    bound = sign_flip(steps, 1e9)
    exact = np.where(exact < bound, exact, sign_flip(steps, 100))
    assert (bound >= exact - 1e-12).all() and (exact < 0.05).any()


def test_few_units_can_show_nothing() -> None:
    assert sign_flip(np.ones((1, 5)), 1)[0] >= 2 / 2**5


@pytest.mark.parametrize("settings", [2, 3, 4, 6])
def test_the_correction_counts_what_may_be_equal(settings: int) -> None:
    """Against all ways in which settings can be equal, which say which pairs may be true together."""
    pairs = [*combinations(range(settings), 2)]
    wanted = []
    for told in range(settings - 1):  # 1 to `told` are told from 0, and the next one is the question
        groups = _partitions([*range(settings)])
        possible = [
            sum(at[a] == at[b] for a, b in pairs)
            for at in groups
            if at[0] == at[told + 1] and all(at[0] != at[other] for other in range(1, told + 1))
        ]
        wanted.append(max(possible))
    p = 1e-6 * np.arange(1, settings)
    assert corrected(p[::-1], settings)[::-1] == pytest.approx(np.maximum.accumulate(p * wanted))


def _partitions(members: list[int]) -> list[dict[int, int]]:
    """Each way to put members into groups: member -> group."""
    if not members:
        return [{}]
    last = members[-1]
    return [
        {**rest, last: group}
        for rest in _partitions(members[:-1])
        for group in range(max(rest.values(), default=-1) + 2)
    ]


def test_the_correction_is_never_more_than_that_of_bonferroni() -> None:
    p = stats.uniform.rvs(size=9, random_state=0) / 40
    assert (corrected(p, 10) >= np.minimum(1, p * 1)).all() and (corrected(p, 10) <= np.minimum(1, p * 45)).all()
    assert corrected(np.array([]), 1).shape == (0,)
