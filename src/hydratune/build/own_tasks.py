"""benchmark.own_tasks -> lm-eval tasks over the user's own rows."""

import json
from collections.abc import Sequence
from typing import Any

from lm_eval.api.registry import is_higher_better
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS
from transformers import PreTrainedTokenizerBase
from xxhash import xxh3_128

from hydratune.build.asking import BETWEEN, PERPLEXITY, OwnTask
from hydratune.build.data import bad_rows
from hydratune.build.own_rows import OwnRows, read_examples, read_rows
from hydratune.config.schema import BenchmarkConf, ConfigError

CHECKED = 1000  # documents of each task that are rendered before anything is started
# lm-eval's aggregation of a metric that is not called as the metric is
AGGREGATION = {
    "acc": "mean", "acc_norm": "mean", "exact_match": "mean", "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
}  # fmt: skip


def build_own_tasks(conf: BenchmarkConf) -> list[OwnTask]:
    """Those of the user's own tasks that benchmark.tasks names. Raises ConfigError naming file and row."""
    return [_build(name, conf) for name in conf.tasks if name in conf.own_tasks]


def check_own_tasks(conf: BenchmarkConf, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """That the rows of each task can be asked about. Raises ConfigError with each problem."""
    found: list[str] = []
    for name in conf.tasks:
        if name not in conf.own_tasks:
            continue
        try:
            _check(_build(name, conf), conf, tokenizer if conf.apply_chat_template else None)
        except ConfigError as error:
            found += error.sentences
    if found:
        raise ConfigError(found)


def _check(task: OwnTask, conf: BenchmarkConf, tokenizer: PreTrainedTokenizerBase | None) -> None:
    wrong = []
    asked = min(CHECKED, conf.limit or CHECKED)
    for doc, place in zip(task.dataset["test"][:asked], task.places[:asked], strict=True):
        try:
            task.ask(doc, [], conf.system_instruction, tokenizer, True)
        except ValueError as error:
            wrong.append(f"{place}: {error}.")
    if wrong:
        raise bad_rows(wrong)


def _build(name: str, conf: BenchmarkConf) -> OwnTask:
    entry = conf.own_tasks[name]
    rows, wanted = read_rows(name, entry), entry.get("num_fewshot")
    count = wanted if wanted == 0 or conf.num_fewshot is None else conf.num_fewshot
    config = {
        "task": name,
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "num_fewshot": wanted,
    }
    examples = None
    if count and entry["kind"] == "perplexity" and not rows.docs[0]["prompt"]:
        raise ConfigError(
            f"benchmark.own_tasks.{name} scores whole texts, before which few-shot examples have no place: set "
            f"benchmark.own_tasks.{name}.num_fewshot=0."
        )
    if count:
        config["fewshot_split"], examples = _examples(name, entry, rows, count)
    return OwnTask({**config, **_scoring(entry, rows, conf), "metadata": _metadata(rows, examples)}, rows, examples)


def _examples(name: str, entry: dict[str, Any], rows: OwnRows, count: int) -> tuple[str, OwnRows | None]:
    """The split that few-shot examples are drawn from, and its rows where it is not the task's own."""
    examples = read_examples(name, entry)
    # of its own rows lm-eval leaves out all that are equal to the one that is asked
    have = len({repr(doc) for doc in rows.docs}) - 1 if examples is None else len(examples.docs)
    if have < count:
        raise ConfigError(
            f"benchmark.own_tasks.{name} is asked for {count} few-shot examples, and there are {have} rows for them: set "
            f"benchmark.own_tasks.{name}.fewshot_path=FILE, or a smaller benchmark.num_fewshot."
        )
    if examples and ("messages" in examples.docs[0]) != ("messages" in rows.docs[0]):
        raise ConfigError(
            f"{examples.places[0]} and {rows.places[0]} must both be conversations, or both plain text: name other rows "
            f"for the examples of benchmark.own_tasks.{name}."
        )
    return ("test", None) if examples is None else ("examples", examples)


def _scoring(entry: dict[str, Any], rows: OwnRows, conf: BenchmarkConf) -> dict[str, Any]:
    """What the kind adds to lm-eval's configuration of a task."""
    kind = entry["kind"]
    if kind == "multiple_choice":
        return {"output_type": kind, "doc_to_choice": "choices", "metric_list": _metrics(["acc", "acc_norm"])}
    if kind == "perplexity":
        kind = "loglikelihood" if rows.docs[0]["prompt"] else "loglikelihood_rolling"  # of plain text, all of it
        return {"output_type": kind, "metric_list": _metrics(PERPLEXITY)}
    metrics = entry.get("metric", "exact_match")
    until = entry.get("until", _default_stop(rows, conf))
    return {
        "output_type": kind,
        "metric_list": _metrics(
            [metrics] if isinstance(metrics, str) else metrics,
            exact_match={key: entry[key] for key in ("ignore_case", "ignore_punctuation") if key in entry},
        ),
        "generation_kwargs": {
            "until": [until] if isinstance(until, str) else until,
            "max_gen_toks": entry.get("max_gen_toks", DEFAULT_MAX_GEN_TOKS),
        },
    }


def _default_stop(rows: OwnRows, conf: BenchmarkConf) -> list[str]:
    """In a chat the end of the turn alone. A model that continues a text may know no end: lm-eval's own delimiter."""
    chat = conf.apply_chat_template and "messages" in rows.docs[0]
    return [] if chat or any(BETWEEN in doc["answer"] for doc in rows.docs) else [BETWEEN]


def _metrics(names: Sequence[str], **arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "metric": name,
            "aggregation": AGGREGATION.get(name, name),
            "higher_is_better": is_higher_better(name),
            **arguments.get(name, {}),
        }
        for name in names
    ]


def _metadata(rows: OwnRows, examples: OwnRows | None) -> dict[str, Any]:
    """What else decides prompts and scores: the rows."""
    digests = {
        name: xxh3_128(json.dumps(of.docs, sort_keys=True).encode()).hexdigest()
        for name, of in (("rows", rows), ("examples", examples))
        if of
    }
    return {"version": 1, **digests}
