"""The settings of a sweep in order, each compared with the best on the same documents or rows, and over seeds.

The best is chosen by the same numbers that it is then compared on, so that a plain comparison with it, even corrected for
the number of settings, calls equal ones worse too often. Here each pair of settings has a test of its own, and p is
corrected for all pairs, of which whichever turns out best is in some: that holds for any choice of the best.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy.special import comb, stdtr, stdtrit

from hydratune.build.pairwise import CHUNK, LEVEL, corrected, mcnemar, sign_flip
from hydratune.build.units import Array, Units

BEST, EQUAL, WORSE, NOT_COMPARED = "best", "can't be told from the best", "worse than the best", "not compared"
UNITS = {"document": "documents", "row": "rows", "batch": "batches"}


@dataclass(frozen=True)
class Finished:
    """A job with a value."""

    number: int
    seed: str | None
    value: float
    seconds: float
    stderr: float | None = None  # as the job itself has it


@dataclass
class Row:
    """A setting: jobs that differ in their seed alone."""

    overrides: tuple[str, ...]
    jobs: list[Finished] = field(default_factory=list)
    missing: int = 0  # jobs without a value
    stderr: float | None = None  # over documents or rows
    difference: float | None = None  # from the best, in the objective's own units
    ci_low: float | None = None  # 95%
    ci_high: float | None = None
    p: float | None = None  # corrected
    verdict: str = NOT_COMPARED
    reason: str = ""  # why it is not compared

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return math.fsum(job.value for job in self.jobs) / len(self.jobs)

    @property
    def lacks(self) -> str:
        """What is not known of it; empty where nothing is missing."""
        return f"{self.missing} of its {self.missing + len(self.jobs)} seeds have no value" if self.missing else ""

    @property
    def seed_sd(self) -> float | None:
        """The standard deviation between seeds; None of one."""
        return float(np.std([job.value for job in self.jobs], ddof=1)) if len(self.jobs) > 1 else None


@dataclass(frozen=True)
class Board:
    """Rows, the best first, and how they were compared."""

    rows: list[Row]
    reason: str = ""  # why none is compared with the best
    units: str = ""  # "100 documents"
    test: str = ""
    compared: int = 0  # settings, with the best


def leaderboard(rows: Iterable[Row], lower: bool, read: Callable[[int], Units | str]) -> Board:
    """`read` gives a job's units, or why it has none; of few jobs at a time, whatever their number.

    A setting of which a seed failed or waits is below those that are whole, and not compared: the seeds that are missing
    may be the bad ones.
    """
    ordered = sorted(rows, key=lambda row: (bool(row.missing), row.value if lower else -row.value))
    if not ordered:
        return Board([])
    best, *others = ordered
    best.verdict, best.stderr = BEST, _told(best)
    first = _read(best, read)
    if isinstance(first, str):
        _tell(others, best, first)
        return Board(ordered, reason=first)
    best.stderr = _error(first.contributions)
    count = len(first.shares)
    asked = f"{count:,} {UNITS[first.unit] if count > 1 else first.unit}"
    found = _Comparison(best, first, len(ordered))
    at_once = max(1, CHUNK // (4 * count))
    for start in range(0, len(others), at_once):
        found.add([(row, _read(row, read)) for row in others[start : start + at_once]])
    told = found.settle()
    reason = "" if told or not others else others[0].reason
    return Board(ordered, reason, asked, " and ".join(sorted(found.tests)), told)


@dataclass(frozen=True)
class _Read:
    """A setting's units: the mean over its seeds. Shape (units,)."""

    shares: Array
    contributions: Array
    asked: str
    unit: str
    binary: bool


def _read(row: Row, read: Callable[[int], Units | str]) -> _Read | str:
    """Or why the setting can't be compared."""
    seeds: list[Units] = []
    for job in row.jobs:
        found = read(job.number)
        if isinstance(found, str):
            return found
        if not math.isclose(found.value, job.value, rel_tol=1e-5, abs_tol=1e-9):
            return f"its {UNITS[found.unit]} are not those that gave its value"
        if seeds and found.asked != seeds[0].asked:
            return f"its seeds have other {UNITS[found.unit]}"
        seeds.append(found)
    first = seeds[0]
    shares = np.mean([one.shares() for one in seeds], axis=0)
    binary = first.aggregation == "mean" and first.weights is None and bool(np.isin(shares, (0, 1)).all())
    contributions = np.mean([one.contributions() for one in seeds], axis=0)
    return _Read(shares, contributions, first.asked, first.unit, binary)


class _Comparison:
    """Of settings with the best, some at a time."""

    def __init__(self, best: Row, first: _Read, settings: int) -> None:
        self.best, self.first = best, first
        self.pairs = float(comb(settings, 2))
        self.told: list[Row] = []
        self.p: list[float] = []
        self.tests: set[str] = set()

    def add(self, some: list[tuple[Row, _Read | str]]) -> None:
        """Their errors, differences and intervals, and p as yet uncorrected."""
        alike: list[tuple[Row, _Read]] = []
        for row, found in some:
            if isinstance(found, str):
                _tell([row], self.best, found)
                continue
            row.stderr, row.difference = _error(found.contributions), row.value - self.best.value
            if row.missing:
                row.reason = row.lacks
            elif found.asked != self.first.asked or found.unit != self.first.unit:
                row.reason = f"it was asked about other {UNITS[found.unit]} than the best, or in another way"
            elif len(found.shares) < 2:
                row.reason = f"a single {found.unit} tells nothing"
            else:
                alike.append((row, found))
        if alike:
            rows = [row for row, _ in alike]
            steps = np.array([found.contributions for _, found in alike]) - self.first.contributions
            p = self._over_units([found for _, found in alike])
            self.p += np.maximum(p, self._over_seeds(rows, steps)).tolist()
            self.told += rows

    def settle(self) -> int:
        """The verdicts, of all. Returns how many were compared."""
        for row, p in zip(self.told, corrected(np.array(self.p), len(self.told) + 1), strict=True):
            row.p = float(p)
            row.verdict = WORSE if p < LEVEL and row.difference else EQUAL
        return len(self.told)

    def _over_units(self, found: list[_Read]) -> Array:
        steps = np.array([one.shares for one in found]) - self.first.shares
        p = np.ones(len(found))
        binary = np.array([one.binary and self.first.binary for one in found])
        if binary.any():
            self.tests.add("exact McNemar")
            p[binary] = mcnemar((steps[binary] < 0).sum(axis=1), (steps[binary] > 0).sum(axis=1))
        if not binary.all():
            self.tests.add("sign-flip permutation")
            p[~binary] = sign_flip(steps[~binary], self.pairs)
        return p

    def _over_seeds(self, rows: list[Row], steps: Array) -> Array:
        """p of t tests where one of the two settings has several seeds, else 0; and each row's interval.

        `steps` (rows, units) are the parts of the differences. Units and the seeds of either setting are a variance each.
        Tested are the sum of all, which is that of the difference over new units and new seeds, and that of the seeds
        alone (Welch's test), since of few seeds the first is too small now and then: of equal settings with 2 to 5 seeds
        each of the two tests by itself, with that over units, tells more than 5% of the sweeps apart, both together don't.
        Seeds are not paired: three pairs leave two degrees of freedom, and what a seed does to all settings alike errs to
        the safe side. The interval is the wider of the two.
        """
        n = steps.shape[1]
        of_units = np.array([steps.var(axis=1, ddof=1) / n, np.full(len(rows), n - 1)])
        of_seeds = [np.array([_between_seeds(row) for row in side]).T for side in (rows, [self.best] * len(rows))]
        sizes = np.abs([row.difference or 0.0 for row in rows])
        p, reach = np.zeros(len(rows)), np.zeros(len(rows))
        for parts in ([of_units, *of_seeds], of_seeds):
            error, free = _together(np.array(parts))
            reach = np.maximum(reach, stdtrit(free, 1 - LEVEL / 2) * error)
            with np.errstate(divide="ignore", invalid="ignore"):
                p = np.maximum(p, np.where(error > 0, 2 * stdtr(free, -sizes / error), 0))
        for row, width in zip(rows, reach, strict=True):
            if width > 0 and row.difference is not None:
                row.ci_low, row.ci_high = row.difference - float(width), row.difference + float(width)
        several = np.array([len(row.jobs) > 1 or len(self.best.jobs) > 1 for row in rows])
        if several.any():
            self.tests.add("t over seeds")
        return np.where(several, p, 0)


def _together(parts: Array) -> tuple[Array, Array]:
    """The standard error of sums whose parts have these variances and degrees of freedom, and its degrees of freedom.

    Satterthwaite (An approximate distribution of estimates of variance components, 1946). `parts` (parts, 2, sums).
    """
    variances, free = parts[:, 0], parts[:, 1]
    total, weights = variances.sum(axis=0), (variances**2 / free).sum(axis=0)
    return np.sqrt(total), np.divide(total**2, weights, out=free.sum(axis=0), where=weights > 0)


def _between_seeds(row: Row) -> tuple[float, float]:
    """The variance of a setting's mean over seeds, and its degrees of freedom; nothing is known of one seed."""
    spread = row.seed_sd
    return (0.0, 1.0) if spread is None else (spread**2 / len(row.jobs), len(row.jobs) - 1.0)


def _error(contributions: Array) -> float | None:
    """The standard error of their mean."""
    n = len(contributions)
    return float(contributions.std(ddof=1) / n**0.5) if n > 1 else None


def _told(row: Row) -> float | None:
    """The error that the job itself has, of one job."""
    return row.jobs[0].stderr if len(row.jobs) == 1 else None


def _tell(rows: list[Row], best: Row, reason: str) -> None:
    for row in rows:
        row.stderr, row.difference, row.reason = _told(row), row.value - best.value, row.lacks or reason
