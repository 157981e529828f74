"""A model's results and samples, written as the evaluate stage writes them."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from hydratune.run import receipt
from hydratune.run.layout import RunDir, write_json


def digest(*what: Any) -> str:
    return sha256(repr(what).encode()).hexdigest()


def task(
    scores: list[Any], metric: str = "acc", aggregation: str = "mean", value: float | None = None,
    higher_is_better: bool | None = True, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """One task with one metric. `scores` are one of each document, None where there is none."""
    kept = [score for score in scores if score is not None]
    return {
        "scores": scores, "metric": metric, "aggregation": aggregation, "higher_is_better": higher_is_better,
        "value": float(np.mean(kept)) if value is None else value, **more,
    }  # fmt: skip


def write_model(
    run: Path, model: str, tasks: dict[str, dict[str, Any]], groups: dict[str, Any] | None = None, seed: int | None = None,
    date: str = "2026-01-02T03-04-05.678901", **settings: Any,
) -> None:  # fmt: skip
    """`run`/benchmark/`model`.json and the files beside it; `seed`: those of another sampling instead.

    The receipts say that nothing was made again since.
    """
    results: dict[str, Any] = {
        "results": {}, "group_subtasks": {}, "configs": {}, "versions": {}, "n-shot": {}, "higher_is_better": {},
        "n-samples": {}, "config": {"limit": None, "gen_kwargs": None, "fewshot_seed": 42} | settings.pop("config", {}),
        "chat_template": "{{ messages }}", "fewshot_as_multiturn": True, "system_instruction": None, **settings,
    }  # fmt: skip
    folder = run / "benchmark" / model
    folder = folder if seed is None else folder / "seeds" / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in tasks.items():
        metric, filtered = one["metric"], one.get("filter", "none")
        scored = [place for place, score in enumerate(one["scores"]) if score is not None]
        results["results"][name] = {
            "alias": name,
            f"{metric},{filtered}": one["value"],
            f"{metric}_stderr,{filtered}": "N/A",
        }
        results["configs"][name] = {
            "task": name, "doc_to_text": "{{question}}", "output_type": one.get("output_type", "multiple_choice"),
            "metric_list": [{"metric": metric, "aggregation": one["aggregation"]}],
            "metadata": {"config_source": f"{run}/task.yaml"}, **one.get("config", {}),
        }  # fmt: skip
        results["n-shot"][name] = one.get("shots", 0)
        results["versions"][name] = one.get("version", 1)
        results["higher_is_better"][name] = {metric: one["higher_is_better"]}
        results["n-samples"][name] = {"original": 1000, "effective": len(one["scores"])}
        lines = []
        for number in range(len(one["scores"])):
            sample: dict[str, Any] = {
                "doc_id": number, "doc": {"question": number}, "filter": filtered, "resps": [], "target": "0",
                "filtered_resps": one["answers"][number] if "answers" in one else [],
                "metrics": [metric] if number in scored else [],
                "doc_hash": digest(one.get("data", name), number),
                "prompt_hash": digest(one.get("prompts", name), number), "target_hash": digest(number),
            }  # fmt: skip
            lines.append(json.dumps(sample | ({metric: one["scores"][number]} if number in scored else {})))
        lines.reverse()  # lm-eval promises no order
        (folder / f"samples_{name}_{date}.jsonl").write_text("\n".join(lines) + "\n")
    for name, group in (groups or {}).items():
        results.setdefault("groups", {})[name] = group["value"]
        results["group_subtasks"][name] = group["subtasks"]
        results["higher_is_better"][name] = {"acc": True}
    text = json.dumps(results)
    (folder / f"results_{date}.json").write_text(text)
    if seed is None:
        (run / "benchmark" / f"{model}.json").write_text(text)
    write_receipts(run)


def write_receipts(run: Path, models: tuple[str, ...] = ("base", "adapter", "merged"), **facts: Any) -> None:
    """Those of an evaluation that has ended, and of the stages that it rests on."""
    made = ("train", "merge")
    for stage in made:
        write_json(RunDir(run).receipt(stage), {"stage": stage, "status": "done"})
    inputs = {stage: receipt.digest(RunDir(run), stage) for stage in made}
    evaluated = {"status": "done", "key": [{"models": models}, []], "inputs": inputs}
    write_json(RunDir(run).receipt("evaluate"), evaluated | facts)
