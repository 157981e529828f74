"""lm-eval's results and samples on disk as scores of single documents."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hydratune.build.again import again
from hydratune.build.result_files import latest, read_results, read_samples
from hydratune.build.statistics import AGGREGATIONS, Array, aggregate
from hydratune.config.schema import ConfigError

MODELS = ("base", "adapter", "merged")
WEIGHTED = {"weighted_perplexity", "bits_per_byte"}
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a Python function in a task's configuration, another in each process
# of a task's configuration, what decides the prompts and how the answers are scored; the documents have hashes
DECISIVE = (
    "description", "doc_to_text", "doc_to_choice", "doc_to_target", "target_delimiter", "fewshot_delimiter",
    "fewshot_config", "gen_prefix", "use_prompt", "process_docs", "process_results", "output_type",
    "generation_kwargs", "filter_list", "metric_list", "repeats",
)  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """One model's scores under one metric of a task or group. Documents are in the same order everywhere."""

    task: str
    metric: str  # "acc", or "exact_match,strict-match" where a filter is named
    value: float | None  # lm-eval's own, of several samplings their mean; None where that is infinite
    stderr: float | None  # lm-eval's own, of the first sampling
    higher_is_better: bool | None
    documents: tuple[str, ...]  # number and digest of each document of the task
    scored: tuple[int, ...]  # places in `documents` of those that have a score
    samplings: Array  # shape (samplings, scored documents)
    weights: Array | None  # shape (scored documents,): lengths, for weighted aggregations
    aggregation: str | None  # one of AGGREGATIONS; None where the scores don't give the value, and `reason` says why
    reason: str = ""
    answers: list[list[str]] = field(default_factory=list)  # of each sampling, where there are several
    prompts: str = ""  # the digests of the prompts
    template: str = ""  # chat template and the tokens that it writes; "" without
    settings: dict[str, Any] = field(default_factory=dict)  # which a comparison wants equal

    @cached_property
    def values(self) -> Array:
        """A document's score: its mean over the samplings. Shape (scored documents,)."""
        return np.asarray(self.samplings.mean(axis=0))


def read_scores(folder: Path, model: str) -> list[Scores]:
    """Of every group and task in `folder`/<model>.json, a run's benchmark folder; groups first.

    Raises ConfigError where samples are missing or don't belong to the results.
    """
    results = read_results(folder / f"{model}.json", folder.parent)
    tasks = [scores for task in results["configs"] for scores in _of_task(task, results, folder, model)]
    return [*_of_groups(results, tasks), *tasks]


def _of_task(task: str, results: dict[str, Any], folder: Path, model: str) -> Iterator[Scores]:
    seeds = sorted((folder / model / "seeds").glob("*"), key=lambda path: (len(path.name), path))
    files = {place: latest(place, f"samples_{task}_", ".jsonl") for place in (folder / model, *seeds)}
    if files[folder / model] is None:
        raise ConfigError(f"The samples of task {task} are missing in {folder / model}: type {again(folder.parent)}.")
    samplings = [read_samples(file, folder.parent) for file in files.values() if file]
    others = [read_results(latest(place, "results_", ".json"), folder.parent) for place in seeds if files[place]]
    counted = results.get("n-samples", {}).get(task, {}).get("effective")
    documents = _documents(next(iter(samplings[0].values())))
    for samples in (samples for sampling in samplings for samples in sampling.values()):
        if _documents(samples) != documents or counted not in (None, len(samples)):
            raise ConfigError(
                f"The samples of task {task} in {folder / model} are not of the {counted} documents that "
                f"{model}.json counts: type {again(folder.parent)}."
            )
    settings, template = {"repeats": len(samplings)} | _settings(task, results), _template(results)
    for filtered, first in samplings[0].items():
        rows = [sampling.get(filtered, []) for sampling in samplings]
        answers = [[json.dumps(one["filtered_resps"]) for one in row] for row in rows] if len(rows) > 1 else []
        prompts = " ".join(one["prompt_hash"] for one in first)
        for metric in dict.fromkeys(name for one in first for name in one["metrics"]):
            key = f"{metric},{filtered}"
            reported = [one["results"].get(task, {}).get(key) for one in (results, *others)]
            if all(isinstance(value, (int, float)) for value in reported):
                values = [[one.get(metric) for one in row] for row in rows]
                yield Scores(
                    task=task,
                    metric=metric if filtered == "none" else key,
                    value=float(np.mean(reported)) if _are_numbers(reported) else None,
                    stderr=_number(results["results"][task].get(f"{metric}_stderr,{filtered}")),
                    higher_is_better=results["higher_is_better"].get(task, {}).get(metric),
                    documents=documents,
                    answers=answers,
                    prompts=prompts,
                    template=template,
                    settings=settings,
                    **_scored(values, reported, _declared(results["configs"][task], metric)),
                )


def _documents(samples: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(f"{one['doc_id']} {one['doc_hash']}" for one in samples)


def _scored(rows: list[list[Any]], reported: list[float], declared: str | None) -> dict[str, Any]:
    """The fields of Scores that depend on the scores: `rows` of each sampling, None where a document has none."""
    # a task may leave a metric out of a document, or score it with what is no number (lm-eval's nanmean)
    scored, *others = [tuple(place for place, value in enumerate(row) if not _is_missing(value)) for row in rows]
    nothing = np.empty((0, len(scored)))
    found: dict[str, Any] = {"scored": scored, "samplings": nothing, "weights": None, "aggregation": None}
    if any(other != scored for other in others):
        return found | {"reason": "its samplings have scores for other documents"}
    if not _are_numbers(reported):
        return found | {"reason": "its value is infinite"}
    read = _as_arrays([[row[place] for place in scored] for row in rows])
    if read is None:
        return found | {"reason": f"{declared or 'its aggregation'} takes more of a document than a number"}
    samplings, weights = read
    named = {"nanmean": "mean"}.get(declared or "", declared)
    for aggregation in [named] if named else AGGREGATIONS:
        if aggregation not in AGGREGATIONS or (aggregation in WEIGHTED) != (weights is not None):
            continue
        values = [aggregate(row, weights, aggregation) for row in samplings]
        if all(map(_alike, values, reported)):
            if aggregation != "mean" and len(samplings) > 1:
                return found | {"reason": f"of several samplings only means are compared, and this is a {aggregation}"}
            return found | {"samplings": samplings, "weights": weights, "aggregation": aggregation}
    return found | {"reason": f"{declared or 'its value'} is no mean of the documents' scores"}


def _as_arrays(rows: list[list[Any]]) -> tuple[Array, Array | None] | None:
    """Scores of each sampling, and the documents' weights where a score is a pair; None where it is something else."""
    if not rows[0] or len({len(value) if isinstance(value, list) else 0 for row in rows for value in row}) > 1:
        return None
    scores = np.array(rows, dtype=object)
    if not _are_numbers(scores.ravel()):
        return None
    scores = scores.astype(float)
    if scores.ndim == 2:
        return scores, None
    same = scores.ndim == 3 and scores.shape[2] == 2 and (scores[..., 1] == scores[0, :, 1]).all()
    return (scores[..., 0], scores[0, :, 1]) if same and scores[..., 1].any() else None


def _of_groups(results: dict[str, Any], tasks: list[Scores]) -> Iterator[Scores]:
    """A group is its pooled documents where their mean is the group's value; else it has a value alone."""
    for group, reported in results.get("groups", {}).items():
        leaves = _leaves(group, results["group_subtasks"])
        for key, value in reported.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not _is_number(value):
                continue
            name = metric if filtered == "none" else key
            parts = [one for one in tasks if one.task in leaves and one.metric == name]
            offsets = np.cumsum([0, *(len(one.documents) for one in parts)])
            whole = {
                "task": group, "metric": name, "value": float(value),
                "stderr": _number(reported.get(f"{metric}_stderr,{filtered}")),
                "higher_is_better": results["higher_is_better"].get(group, {}).get(metric),
                "documents": tuple(f"{one.task} {document}" for one in parts for document in one.documents),
                "scored": tuple(int(at) + place for at, one in zip(offsets[:-1], parts, strict=True) for place in one.scored),
                "prompts": " ".join(one.prompts for one in parts), "template": _template(results),
            }  # fmt: skip
            means = parts and all(one.aggregation == "mean" for one in parts)
            pooled = None
            if means and len({len(one.samplings) for one in parts}) == 1:
                pooled = np.concatenate([one.samplings for one in parts], axis=1)
            if pooled is not None and _alike(pooled[0].mean(), value):
                answers = [[*chain(*same)] for same in zip(*(one.answers for one in parts), strict=True)]
                whole["value"] = float(pooled.mean())
                yield Scores(**whole, samplings=pooled, weights=None, aggregation="mean", answers=answers)
            else:
                nothing = np.empty((0, len(whole["scored"])))
                reason = "the group's value isn't the mean of its documents' scores"
                yield Scores(**whole, samplings=nothing, weights=None, aggregation=None, reason=reason)


def _leaves(group: str, subtasks: dict[str, list[str]]) -> set[str]:
    inner = subtasks.get(group, [])
    return {leaf for name in inner for leaf in (_leaves(name, subtasks) if name in subtasks else {name})}


def _settings(task: str, results: dict[str, Any]) -> dict[str, Any]:
    """What decides prompts and scores. The first keys are those of `benchmark`; then the seed, version and task."""
    conf, asked = results["configs"][task], results.get("config", {})
    chat, shots = bool(results.get("chat_template")), results.get("n-shot", {}).get(task)
    decisive = json.dumps({key: conf.get(key) for key in DECISIVE}, sort_keys=True)
    return {
        "num_fewshot": shots,
        "apply_chat_template": chat,
        "fewshot_as_multiturn": results.get("fewshot_as_multiturn") if chat and shots else None,
        "system_instruction": results.get("system_instruction"),
        "gen_kwargs": asked.get("gen_kwargs") if conf.get("output_type") == "generate_until" else None,
        "limit": asked.get("limit"),
        "seed": asked.get("fewshot_seed") if shots else None,
        "version": results.get("versions", {}).get(task),
        "task": ADDRESS.sub("", decisive),
    }


def _template(results: dict[str, Any]) -> str:
    """What makes a prompt of a conversation: the template's text, and the special tokens that it may write."""
    text = results.get("chat_template")
    names = ("tokenizer_bos_token", "tokenizer_eos_token", "tokenizer_pad_token")  # each with its id
    return json.dumps([text, *((results.get(name) or [None])[0] for name in names)]) if text else ""


def _declared(conf: dict[str, Any], metric: str) -> str | None:
    """The name of the aggregation that the task's configuration gives; None of a function of the task's own."""
    for one in conf.get("metric_list") or []:
        if one.get("metric") == metric:
            name = str(one.get("aggregation", ""))
            return name if name.isidentifier() or name == "chrf++" else None
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(map(_is_number, values))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
