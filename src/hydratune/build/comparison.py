"""Scores of several models on the same documents as rows of one table."""

import json
from itertools import groupby
from typing import Any

from hydratune.build.again import again
from hydratune.build.scores import Scores
from hydratune.build.statistics import aggregate, consistency, holm, paired, standard_error, verdict
from hydratune.config.schema import ConfigError


def compare(models: dict[str, list[Scores]], reference: str, seed: int) -> list[dict[str, Any]]:
    """A row for each task, metric and model; a model's difference is from `reference`."""
    found = {model: {(one.task, one.metric): one for one in scores} for model, scores in models.items()}
    rows = []
    for key in dict.fromkeys(key for scores in (found[reference], *found.values()) for key in scores):
        base = found[reference].get(key)
        for model in (model for model in found if key in found[model]):
            scores = found[model][key]
            row = _alone(model, scores, seed)
            if model != reference:
                row |= {"reference": reference} | _against(base, scores, seed)
            rows.append(row)
    told = [row for row in rows if "p" in row]
    for row, p in zip(told, holm([row["p"] for row in told]), strict=True):
        row |= {"p_corrected": p, "verdict": verdict(p, row["difference"], row.pop("higher_is_better"))}
    return rows


def _alone(model: str, scores: Scores, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"task": scores.task, "metric": scores.metric, "model": model, "n": len(scores.scored)}
    row |= {"value": scores.value, "stderr": scores.stderr}
    if scores.aggregation is None:
        return row | {"reason": scores.reason}
    row["stderr"] = standard_error(scores.values, scores.weights, scores.aggregation, seed)
    if len(scores.samplings) > 1:
        metrics = [aggregate(one, scores.weights, scores.aggregation) for one in scores.samplings]
        row |= {"repeats": len(metrics)} | vars(consistency(metrics, scores.answers))
    return row


def _against(base: Scores | None, scores: Scores, seed: int) -> dict[str, Any]:
    """The paired comparison, or the reason why there is none."""
    if base is None:
        return {"reason": "the reference has no such score"}
    if base.aggregation is None or scores.aggregation is None:
        return {"reason": base.reason or scores.reason}
    if base.documents != scores.documents:  # of a task that was refused
        return {"reason": "the group has other tasks"}
    if other_prompts(base, scores):
        return {"reason": "its prompts differ under the same settings"}
    if base.scored != scores.scored:
        return {"reason": f"it is there for other documents ({len(base.scored)} and {len(scores.scored)} of them)"}
    same = (base.weights is None) == (scores.weights is None) and base.aggregation == scores.aggregation
    if not same or (base.weights is not None and (base.weights != scores.weights).any()):
        return {"reason": "its documents have other lengths"}
    found = vars(paired(base.values, scores.values, base.weights, base.aggregation, seed))
    return {**found, "higher_is_better": scores.higher_is_better}


def other_prompts(base: Scores, other: Scores) -> bool:
    """Whether the same conversations came as other texts, and not because each model has a chat template of its own."""
    return base.prompts != other.prompts and base.template == other.template


def refuse_other_questions(models: dict[str, list[Scores]], reference: str) -> None:
    """Raises ConfigError, a sentence for each model and thing in which its questions differ from the reference's."""
    first = {one.task: one for one in reversed(models[reference])}
    differing = [
        (model, *what, one.task)
        for model, scores in models.items()
        for one in {one.task: one for one in reversed(scores)}.values()
        if one.settings and one.task in first and (what := _difference(first[one.task], one))
    ]
    wrong = []
    for (model, key, mine, other), same in groupby(differing, lambda one: one[:4]):
        tasks = [one[-1] for one in same]
        named = tasks[0] + (f" and {len(tasks) - 1} more" if tasks[1:] else "")
        wrong.append(f"{named}: {_sentence(reference, model, key, mine, other)}")
    if wrong:
        raise ConfigError(wrong)


def _difference(base: Scores, other: Scores) -> tuple[str, str, str] | None:
    """The first setting in which the two differ, and its values as typed; None where they are the same questions."""
    values = [(key, value, other.settings.get(key)) for key, value in base.settings.items()]
    if base.documents != other.documents:
        values = [one for one in values if one[0] == "limit" and one[1] != one[2]]
        values = values or [("documents", len(base.documents), len(other.documents))]
    else:  # a limit shows in the documents, and the seed of few-shot examples in the prompts
        shown = {"limit", "seed"} if base.prompts == other.prompts else {"limit"}
        values = [one for one in values if one[1] != one[2] and one[0] not in shown]
        values += [("prompts", None, None)] if other_prompts(base, other) else []
    return (values[0][0], _typed(values[0][1]), _typed(values[0][2])) if values else None


def _sentence(reference: str, model: str, key: str, mine: str, other: str) -> str:
    """What differs, and what to type."""
    run = model.rpartition(":")[0] or model
    if key == "documents":
        return f"{reference} has other documents ({mine}) than {model} ({other}): evaluate both on the same data."
    if key == "prompts":
        runs = dict.fromkeys(name.rpartition(":")[0] for name in (reference, model))
        receipts = " and ".join(f"{one}/receipts/evaluate.json" for one in runs)
        typed = " and ".join(map(again, runs))
        return (
            f"{reference} and {model} got other prompts under the same settings (code of the task has changed, or the "
            f"chat template writes the date): remove {receipts}, and type {typed} on one day."
        )
    if key == "version":
        return (
            f"{reference} had version {mine} of the task, {model} version {other}: evaluate both with the same lm-eval."
        )
    if key == "task":
        return f"{reference} and {model} had the task with other prompts or scoring: evaluate both with the same task file."
    wanted = f"benchmark.{key}={mine}"
    return f"{reference} was asked with {wanted}, {model} with {other}: type {again(run, wanted)}."


def _typed(value: Any) -> str:
    """As it is typed on the command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_typed(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)
