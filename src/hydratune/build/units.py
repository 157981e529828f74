"""What a metric is a mean of, documents or rows, as small files: a sweep's report reads those of a thousand jobs."""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # whose imports take longer than the reading of many files
    from hydratune.build.scores import Scores

ABOUT = "about"  # the member of a file that has all but the numbers, JSON
# the metric as a function of the (weighted) mean of the values, and its slope there
AGGREGATED: Mapping[str, tuple[Any, Any]] = {
    "mean": (lambda mean: mean, lambda mean: 1.0),
    "perplexity": (lambda mean: np.exp(-mean), lambda mean: -np.exp(-mean)),
    "weighted_perplexity": (lambda mean: np.exp(-mean), lambda mean: -np.exp(-mean)),
    "bits_per_byte": (lambda mean: -mean / np.log(2), lambda mean: -1 / np.log(2)),
}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Units:
    """One metric of one run. The metric is a function of the sum of `values` by that of `weights`, else by their number."""

    values: Array  # shape (units,): scores, or summed losses in nats
    weights: Array | None  # shape (units,): lengths, or supervised tokens
    aggregation: str  # one of AGGREGATED
    higher_is_better: bool | None
    asked: str  # a digest: equal where the units are the same ones, asked in the same way
    unit: str  # "document", "row", "batch"

    @property
    def value(self) -> float:
        """The metric."""
        return float(AGGREGATED[self.aggregation][0](self._mean))

    def shares(self) -> Array:
        """Values whose plain mean is the mean that the metric is a function of."""
        return self.values * (len(self.values) / self._size)

    def contributions(self) -> Array:
        """Numbers whose plain mean is the metric, and whose spread gives its error, shape (units,).

        Linearized about the mean (the delta method): exact for a plain mean.
        """
        scaled = 1.0 if self.weights is None else self.weights
        function, slope = AGGREGATED[self.aggregation]
        offsets = (self.values - self._mean * scaled) * (len(self.values) / self._size)
        return np.asarray(function(self._mean) + slope(self._mean) * offsets)

    @property
    def _size(self) -> float:
        return float(len(self.values) if self.weights is None else self.weights.sum())

    @property
    def _mean(self) -> float:
        return float(self.values.sum() / self._size)


def packed(units: Mapping[str, Units | str]) -> bytes:
    """The content of a file; a string is the reason why the metric of that name has none."""
    arrays: dict[str, Array] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, one in units.items():
        if isinstance(one, str):
            about[name] = {"reason": one}
            continue
        arrays[f"{name} values"] = one.values.astype(np.float64)
        if one.weights is not None:
            arrays[f"{name} weights"] = one.weights.astype(np.float64)
        about[name] = {key: getattr(one, key) for key in ("aggregation", "higher_is_better", "asked", "unit")}
    buffer = io.BytesIO()
    said: Any = {ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays}
    np.savez_compressed(buffer, **said)
    return buffer.getvalue()


def read_units(path: Path, name: str) -> Units | str:
    """The metric `name` of a file that `packed` has made, or a sentence's end that says why there is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file[ABOUT].tobytes()).get(name)
            if about is None:
                return f"{path.name} has no {name}"
            if "reason" in about:
                return str(about["reason"])
            weights = file[f"{name} weights"] if f"{name} weights" in file.files else None
            return Units(file[f"{name} values"], weights, **about)
    except FileNotFoundError:
        return f"there is no {path.name}"
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return f"{path.name} is damaged"


def units_of(models: Mapping[str, "list[Scores]"]) -> dict[str, Units | str]:
    """`<model>/<task>/<metric>` -> the documents' scores, as metrics.json has them: their means over the samplings."""
    found: dict[str, Units | str] = {}
    for model, scores in models.items():
        settings = {one.task: one.settings for one in scores if one.settings}
        for one in scores:
            name = f"{model}/{one.task}/{one.metric}"
            if one.aggregation is None:
                found[name] = one.reason
                continue
            found[name] = Units(
                values=one.values,
                weights=one.weights,
                aggregation=one.aggregation,
                higher_is_better=one.higher_is_better,
                asked=_digest(one, settings),
                unit="document",
            )
    return found


def _digest(scores: "Scores", settings: dict[str, dict[str, Any]]) -> str:
    """Of the documents and how they were asked, as build/comparison.py wants it equal; of a group, by all its tasks."""
    tasks = [scores.task] if scores.settings else {document.partition(" ")[0] for document in scores.documents}
    how = {task: {k: v for k, v in settings.get(task, {}).items() if k != "limit"} for task in sorted(tasks)}
    lengths = None if scores.weights is None else scores.weights.tolist()
    said = json.dumps([scores.documents, scores.scored, lengths, how], sort_keys=True, default=str)
    return sha256(said.encode()).hexdigest()[:16]
