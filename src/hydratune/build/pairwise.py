"""Tests of many pairs of settings at once, and their correction for being so many.

Of single pairs the same tests as in build/statistics.py, which takes a while to import and a tenth of a second a pair.
"""

import numpy as np
from scipy.special import bdtr, comb  # scipy.stats would take longer to import than a report takes

from hydratune.build.units import Array

LEVEL = 0.05
RESAMPLES = (9_999, 99_999)  # the second where p is small
CHUNK = 4_000_000  # numbers in memory at once


def corrected(p_values: Array, settings: int) -> Array:
    """p of `settings` - 1 pairs with one setting, corrected for all pairs. Shape (pairs,).

    Shaffer's second procedure (Modified sequentially rejective multiple test procedures, JASA 81, 1986), the other pairs
    taken as never rejected: where `l` settings are told from the best, and the next is not, the settings that may
    still be equal fall into two groups, one with both of these, the other with the `l`.
    """
    order = np.argsort(p_values, kind="stable")
    told = np.arange(len(p_values))
    possible = np.maximum(comb(settings - told, 2) + comb(told, 2), 1 + comb(settings - 2, 2))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * possible))
    return adjusted


def sign_flip(steps: Array, pairs: float, seed: int = 0) -> Array:
    """Two-sided p of each line, where each of its numbers could as well have the other sign. (lines, units) -> (lines,).

    First Hoeffding's bound, which the exact p never exceeds (Probability inequalities for sums of bounded random
    variables, 1963, theorem 2, of the signs). What that doesn't decide, corrected for `pairs`, is counted: of all signs
    for few units, else of random ones (with the observed ones among them, as Phipson and Smyth have it, 2010).
    """
    n = steps.shape[1]
    sizes, squares = np.abs(steps.sum(axis=1)), (steps**2).sum(axis=1)
    p = np.ones(len(steps))
    moved = squares > 0
    p[moved] = np.minimum(1, 2 * np.exp(-(sizes[moved] ** 2) / (2 * squares[moved])))
    few = 2**n <= RESAMPLES[0]
    least = 2.0 ** (1 - n) if few else 1 / (RESAMPLES[1] + 1)
    undecided = np.flatnonzero(moved & (p * pairs >= LEVEL / 5))
    # where the least p that could be counted, corrected, is 1, or decides nothing, counting is of no use
    if least * pairs >= (1 if few else LEVEL) or not len(undecided):
        return p
    if few:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        p[undecided] = _extreme(signs, steps[undecided], sizes[undecided]) / 2**n
        return p
    random = np.random.default_rng(seed)
    for resamples in RESAMPLES:
        reached = np.zeros(len(undecided))
        for start in range(0, resamples, rows := max(1, CHUNK // max(n, len(undecided)))):
            drawn = random.integers(0, 2, (min(rows, resamples - start), n), dtype=np.int8)
            reached += _extreme(2.0 * drawn - 1.0, steps[undecided], sizes[undecided])
        p[undecided] = (reached + 1) / (resamples + 1)
        # twenty times what it takes to be told apart is not found by chance
        undecided = undecided[p[undecided] <= min(LEVEL / 5, 20 * LEVEL / pairs)]
        if not len(undecided):
            break
    return p


def mcnemar(lost: Array, won: Array) -> Array:
    """The exact test of 0/1 scores, two-sided: units on which one setting alone is right, and the other alone."""
    return np.minimum(1, 2 * bdtr(np.minimum(lost, won), lost + won, 0.5))


def _extreme(signs: Array, steps: Array, sizes: Array) -> Array:
    """How many of the sums with these signs are as far from 0 as the observed ones, shape (lines,)."""
    return np.asarray((np.abs(signs @ steps.T) >= sizes * (1 - 1e-9)).sum(axis=0))
