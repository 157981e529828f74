"""One swept key against the objective, as a PNG."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hydratune.build.leaderboard import Row

SPANS = 10.0  # values that are so many times apart are shown on a log axis
LABELS = 30  # of values that are no numbers
BEYOND = 3.0  # settings further from the median than so many times the better half reaches are left out of the picture


def figure(key: str, values: Sequence[str], rows: Sequence[Row], objective: str, lower: bool) -> bytes:
    """`values` of the key in each of `rows`, the best row first. Raises ImportError where there is no matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second, which only figures need
    from matplotlib.figure import Figure

    whole: Any = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(whole)
    axes: Any = whole.subplots()
    numbers = _numbers(values)
    if numbers is None:
        kinds = sorted(set(values), key=_natural)
        places = np.array([kinds.index(value) for value in values], float)
        every = math.ceil(
            len(kinds) / LABELS
        )  # more could not be read, and would take longer than the rest of the report
        shown = kinds[::every]
        axes.set_xticks(range(0, len(kinds), every), shown, rotation=30 if sum(map(len, shown)) > 60 else 0)
        axes.set_xlim(-0.5, len(kinds) - 0.5)
    else:
        places = numbers
        if numbers.min() > 0 and numbers.max() / numbers.min() >= SPANS:
            axes.set_xscale("log")
        if len(ticks := np.unique(numbers)) <= 8:
            axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
            axes.minorticks_off()
    heights = np.array([row.value for row in rows])
    errors = np.array([row.stderr or 0.0 for row in rows])
    how: dict[str, Any] = {"fmt": "o", "capsize": 2, "markersize": 4}
    axes.errorbar(places, heights, errors, color="0.55", alpha=max(0.15, min(1.0, 30 / len(rows))), **how)
    found = [heights[places == place] for place in np.unique(places)]
    tops = [some.min() if lower else some.max() for some in found]
    axes.plot(np.unique(places), tops, color="C0", label="best of each value", zorder=3)
    axes.errorbar(places[:1], heights[:1], errors[:1], color="C3", label="best of all", zorder=4, **how)
    left_out = _zoom(axes, heights, errors, lower)
    axes.set(xlabel=key, ylabel=objective)
    error = "error bars: standard error" if errors.any() else "no standard errors"
    axes.set_title(error + (f"; {left_out} further settings beyond the edge" if left_out else ""), fontsize=9)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    whole.savefig(buffer, format="png")
    return buffer.getvalue()


def _zoom(axes: Any, heights: np.ndarray, errors: np.ndarray, lower: bool) -> int:
    """Cut the worse end off where a few settings that went astray would press the others flat. Returns how many."""
    worse = heights - heights[0] if lower else heights[0] - heights
    edge = (1 + BEYOND) * float(np.median(worse))
    beyond = int((worse > edge).sum())
    if not beyond or edge == 0 or worse.max() < 3 * edge:
        return 0
    kept = worse <= edge
    low, high = (heights - errors)[kept].min(), (heights + errors)[kept].max()
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    return beyond


def _numbers(values: Sequence[str]) -> np.ndarray | None:
    """None where one isn't a number, or a log axis has no place for one."""
    try:
        found = np.array([float(value) for value in values])
    except ValueError:
        return None
    above = found[found > 0]
    spans = len(above) > 0 and above.max() / above.min() >= SPANS
    return found if np.isfinite(found).all() and (found.min() > 0 or not spans) else None


def _natural(value: str) -> tuple[int, float, str]:
    """Numbers by their size, before words."""
    try:
        number = float(value)
        return (0, number, value) if math.isfinite(number) else (1, 0.0, value)
    except ValueError:
        return (1, 0.0, value)
