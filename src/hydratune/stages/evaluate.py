"""lm-eval on base, adapter and merged model, compared document by document."""

import gc
import math
import os
from collections.abc import Iterator
from statistics import stdev
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from scipy import stats

from hydratune.build.adapter import named_model
from hydratune.build.benchmark import build_tasks
from hydratune.build.hardware import Hardware
from hydratune.build.model import load_tokenizer
from hydratune.build.source import model_source
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config
from hydratune.run.console import say
from hydratune.run.layout import RunDir, write_json


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Writes benchmark/<model>.json and comparison.json. Metrics: <model>/<task>/<metric>."""
    conf = config.benchmark
    source = model_source(config.model, cache_dir(config))
    tokenizer = load_tokenizer(config.model, source)
    os.environ.setdefault("LM_HARNESS_CACHE_PATH", str(cache_dir(config) / "lm_eval"))
    tasks = build_tasks(conf)
    (run.benchmark / "comparison.json").unlink(missing_ok=True)
    results: dict[str, dict[str, Any]] = {}
    names = [n for n in conf.models if n != "adapter" or config.lora.kind != "none"]
    for name in names:
        say(f"  {name}")
        model: Any = named_model(name, config, hardware, source, run.adapter, run.merged)
        results[name] = simple_evaluate(
            model=HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=conf.batch_size,
                max_length=getattr(model.config.get_text_config(), "max_position_embeddings", 2048),
            ),
            tasks=list(conf.tasks), task_manager=tasks, limit=conf.limit,
            num_fewshot=conf.num_fewshot,
            apply_chat_template=conf.apply_chat_template, log_samples=True, bootstrap_iters=0,
            random_seed=config.seed, numpy_random_seed=config.seed, torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
        )  # fmt: skip
        write_json(run.benchmark / f"{name}.json", results[name])
        del model
        gc.collect()
    rows = [row for task in results[names[0]]["samples"] for row in compare(task, results)]
    write_json(run.benchmark / "comparison.json", rows)
    return {name: value for model, result in results.items() for name, value in _aggregated(model, result)}


def _aggregated(model: str, result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """`<model>/<task>/<metric>` and its value, and the same with `_stderr`, of every task and group of lm-eval's."""
    for task, metrics in result["results"].items():
        for key, value in metrics.items():
            if "," in key and isinstance(value, (int, float)):
                metric, filtered = key.split(",", 1)
                yield f"{model}/{task}/{metric}" + ("" if filtered == "none" else f",{filtered}"), value


def compare(task: str, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model and per-document metric of `task`, with the paired difference from base.

    The standard error of the difference is that of the mean of paired differences; the verdict is a two-sided
    paired t-test at 5 %, "better" in the sense of the metric, or "not distinguishable".
    """
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for model, result in results.items():
        for sample in result["samples"][task]:
            for metric in sample["metrics"]:
                if isinstance(sample.get(metric), (int, float)):
                    name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
                    scores.setdefault(name, {}).setdefault(model, {})[sample["doc_id"]] = float(sample[metric])
    rows = []
    for name, by_model in scores.items():
        base = by_model.get("base")
        higher = {m: r["higher_is_better"][task].get(name.partition(",")[0], True) for m, r in results.items()}
        for model, by_doc in by_model.items():
            values = list(by_doc.values())
            row = {"task": task, "metric": name, "model": model, "n": len(values), **_mean(values)}
            if base and model != "base" and base.keys() == by_doc.keys():
                paired = _mean([by_doc[doc] - base[doc] for doc in base])
                row |= {"difference": paired["value"], "difference_stderr": paired["stderr"]}
                row["verdict"] = _verdict(paired, len(base), higher[model])
            rows.append(row)
    return rows


def _mean(values: list[float]) -> dict[str, Any]:
    n = len(values)
    mean = sum(values) / n
    # one document has no spread: None, since NaN is not JSON
    return {"value": mean, "stderr": stdev(values) / math.sqrt(n) if n > 1 else None}


def _verdict(paired: dict[str, Any], n: int, higher_is_better: bool) -> str:
    if n < 2 or paired["value"] == 0:
        return "not distinguishable"
    if paired["stderr"] > 0:
        p = 2 * stats.t.sf(abs(paired["value"]) / paired["stderr"], n - 1)
        if p >= 0.05:
            return "not distinguishable"
    return "better" if (paired["value"] > 0) == higher_is_better else "worse"
