"""Results and samples on disk become rows of one table, and only what can be compared is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hydratune.build.comparison import compare
from hydratune.build.scores import read_scores
from hydratune.config.schema import ConfigError
from tests.samples_on_disk import task, write_model

pytestmark = pytest.mark.filterwarnings("error")
BASE = [1.0, 0.0] * 20
BETTER = [1.0] * 36 + [0.0] * 4


def rows(run: Path, *models: str) -> list[dict[str, Any]]:
    """The rows of comparison.json, which is JSON without NaN."""
    found = compare({model: read_scores(run / "benchmark", model) for model in models}, models[0], seed=0)
    return json.loads(json.dumps(found, allow_nan=False))


def test_two_models_on_the_same_documents(tmp_path: Path) -> None:
    write_model(tmp_path, "base", {"nouns": task(BASE)})
    write_model(tmp_path, "merged", {"nouns": task(BETTER)})
    base, merged = rows(tmp_path, "base", "merged")
    assert (base["value"], base["n"], base["stderr"]) == (0.5, 40, pytest.approx(stats.sem(BASE)))
    assert "verdict" not in base and "difference" not in base
    won, lost = 18, 2
    assert merged["p"] == merged["p_corrected"] == pytest.approx(stats.binomtest(won, won + lost).pvalue)
    assert merged["difference"] == pytest.approx(0.4)
    assert merged["ci_low"] < 0.4 < merged["ci_high"]
    assert (merged["test"], merged["effect_size"], merged["effect"]) == ("exact McNemar", "Cohen's g", 0.4)
    assert (merged["reference"], merged["verdict"]) == ("base", "better")


def test_several_verdicts_are_corrected_together(tmp_path: Path) -> None:
    """A p value of 0.031 is a verdict by itself, and none beside another comparison."""
    names = [f"task{k}" for k in range(2)]
    write_model(tmp_path, "base", {name: task([0.0] * 8) for name in names})
    six = [1.0] * 6 + [0.0] * 2
    write_model(tmp_path, "merged", {names[0]: task(six), names[1]: task([0.0] * 8)})
    told = [row for row in rows(tmp_path, "base", "merged") if "p" in row]
    assert [row["p"] for row in told] == [2 / 2**6, 1.0]
    assert [row["p_corrected"] for row in told] == [4 / 2**6, 1.0]
    assert [row["verdict"] for row in told] == ["not distinguishable"] * 2


def test_the_metric_says_which_way_is_better(tmp_path: Path) -> None:
    for word, higher in (("worse", False), ("differs", None)):
        write_model(tmp_path, "base", {"nouns": task(BASE, higher_is_better=higher)})
        write_model(tmp_path, "merged", {"nouns": task(BETTER, higher_is_better=higher)})
        assert rows(tmp_path, "base", "merged")[1]["verdict"] == word


def test_perplexities_are_compared_by_their_documents(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    words = random.integers(20, 90, size=30)
    for model, level in (("base", 3.0), ("merged", 2.8)):
        told = -words * random.normal(level, 0.1, size=30)
        pairs = [[float(a), int(b)] for a, b in zip(told, words, strict=True)]
        mean = float(told.sum() / words.sum())
        tasks = {
            "text": task(pairs, "word_perplexity", "weighted_perplexity", float(np.exp(-mean)), False),
            "bits": task(pairs, "bits_per_byte", "bits_per_byte", -mean / np.log(2), False),
            "single": task(told.tolist(), "perplexity", "perplexity", float(np.exp(-told.mean())), False),
        }
        write_model(tmp_path, model, tasks)
    for row in rows(tmp_path, "base", "merged")[1::2]:
        assert row["verdict"] == "better" and row["difference"] < 0 and row["ci_high"] < 0, row
        assert row["test"] == "sign-flip permutation"


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (task([["a", "b"]] * 5, "bleu", "bleu", 31.0), "bleu takes more of a document than a number"),
        (task([[0, 1]] * 5, "f1", "f1", 0.9), "f1 is no mean of the documents' scores"),
        (task([[0, [0.5, 0.5]]] * 5, "brier_score", "brier_score", 0.5), "brier_score takes more of a document than a number"),
        (task([1.0, 2.0, 9.0], "length", "median", 2.0), "median is no mean of the documents' scores"),
        (task([-900.0] * 3, "perplexity", "perplexity", float("inf")), "its value is infinite"),
        (task([0.0, 1.0], value=0.7), "mean is no mean of the documents' scores"),
        (task([0.0, 1.0], aggregation="def own(items):\n    return 7", value=7), "its value is no mean of the documents' scores"),
    ],
)  # fmt: skip
def test_other_aggregations_have_a_value_and_the_reason(one: dict[str, Any], reason: str, tmp_path: Path) -> None:
    for model in ("base", "merged"):
        write_model(tmp_path, model, {"nouns": one})
    _, row = rows(tmp_path, "base", "merged")
    assert row["reason"] == reason and "p" not in row and "verdict" not in row
    assert row["value"] == (one["value"] if np.isfinite(one["value"]) else None)


def test_a_function_of_the_tasks_own_is_known_by_its_value(tmp_path: Path) -> None:
    source = "def own(items):\n    return sum(items) / len(items)"
    write_model(tmp_path, "base", {"nouns": task(BASE, aggregation=source)})
    write_model(tmp_path, "merged", {"nouns": task(BETTER, aggregation=source)})
    assert rows(tmp_path, "base", "merged")[1]["verdict"] == "better"


def test_a_metric_that_some_documents_lack(tmp_path: Path) -> None:
    write_model(tmp_path, "base", {"nouns": task([None, *BASE])})
    write_model(tmp_path, "adapter", {"nouns": task([None, *BETTER])})
    write_model(tmp_path, "merged", {"nouns": task([0.0, *BETTER[:-1], None])})
    _, adapter, merged = rows(tmp_path, "base", "adapter", "merged")
    assert (adapter["n"], adapter["verdict"]) == (40, "better")
    assert merged["reason"] == "it is there for other documents (40 and 40 of them)" and "p" not in merged


def test_a_group_is_its_pooled_documents_where_that_is_its_value(tmp_path: Path) -> None:
    for model, scores in (("base", BASE), ("merged", BETTER)):
        parts = {"a": task(scores), "b": task(scores[:9]), "c": task(scores[5:25])}
        means = [one["value"] for one in parts.values()]
        pooled = (sum(scores) + sum(scores[:9]) + sum(scores[5:25])) / 69
        groups = {
            "whole": {"value": {"alias": "whole", "acc,none": pooled, "acc_stderr,none": "N/A", "sample_len": 69}, "subtasks": ["part", "c"]},
            "part": {"value": {"acc,none": (means[0] + means[1]) / 2, "acc_stderr,none": 0.01}, "subtasks": ["a", "b"]},
        }  # fmt: skip
        write_model(tmp_path, model, parts, groups)
    found = {(row["task"], row["model"]): row for row in rows(tmp_path, "base", "merged")}
    assert list(dict.fromkeys(name for name, _ in found)) == ["whole", "part", "a", "b", "c"]
    whole, part = found["whole", "merged"], found["part", "merged"]
    assert (whole["n"], whole["verdict"]) == (69, "better")
    assert whole["p"] < found["a", "merged"]["p"]
    assert part["reason"] == "the group's value isn't the mean of its documents' scores" and "p" not in part
    assert found["part", "base"]["stderr"] == 0.01


def test_a_group_of_other_tasks_is_not_compared(tmp_path: Path) -> None:
    for model, second in (("base", "b"), ("merged", "c")):
        group = {"value": {"acc,none": 0.5}, "subtasks": ["a", second]}
        write_model(tmp_path, model, {"a": task(BASE), second: task(BASE)}, {"whole": group})
    found = {(row["task"], row["model"]): row for row in rows(tmp_path, "base", "merged")}
    assert found["whole", "merged"]["reason"] == "the group has other tasks" and "p" in found["a", "merged"]
    assert found["c", "merged"]["reason"] == "the reference has no such score"


def test_other_prompts_under_the_same_settings_are_not_compared(tmp_path: Path) -> None:
    """As of a chat template that writes the date, where midnight came between two models."""
    for model, day in (("base", "today"), ("merged", "tomorrow")):
        group = {"value": {"acc,none": 0.5}, "subtasks": ["a", "b"]}
        write_model(tmp_path, model, {"a": task(BASE, prompts=day), "b": task(BASE)}, {"whole": group})
    found = {row["task"]: row for row in rows(tmp_path, "base", "merged") if row["model"] == "merged"}
    for name in ("whole", "a"):
        assert found[name]["reason"] == "its prompts differ under the same settings" and "p" not in found[name]
    assert "p" in found["b"]


def test_several_samplings_are_averaged_and_their_agreement_is_told(tmp_path: Path) -> None:
    samplings = {
        "base": [[1.0, 0.0, 0.0, 0.0] * 5, [0.0, 1.0, 0.0, 0.0] * 5],
        "merged": [[1.0, 1.0, 1.0, 0.0] * 5, [1.0, 1.0, 0.0, 1.0] * 5],
    }
    for model, (first, second) in samplings.items():
        for seed, scores in ((None, first), (1, second)):
            answers = [[f"answer {score}"] for score in scores]
            one = task(scores, "exact_match", output_type="generate_until", answers=answers, filter="strict-match")
            write_model(tmp_path, model, {"sums": one}, seed=seed)
    base, merged = rows(tmp_path, "base", "merged")
    assert (base["metric"], base["repeats"], base["n"]) == ("exact_match,strict-match", 2, 20)
    assert (base["value"], merged["value"]) == (0.25, 0.75)
    assert (base["seed_spread"], base["same_answers"], base["agreement"]) == (0.0, 0.5, 0.5)
    averaged = np.mean(samplings["base"], axis=0)
    assert base["stderr"] == pytest.approx(stats.sem(averaged))
    assert merged["test"] == "sign-flip permutation"  # halves are no longer yes or no
    assert merged["difference"] == pytest.approx(0.5) and merged["verdict"] == "better"


def test_the_latest_samples_are_read_and_only_those_of_the_task(tmp_path: Path) -> None:
    for scores, date in (([0.0] * 40, "2025-12-31T23-59-59.000001"), (BASE, "2026-01-02T03-04-05.000001")):
        write_model(tmp_path, "base", {"nouns": task(scores), "nouns_hard": task(BETTER)}, date=date)
    nouns, hard = rows(tmp_path, "base")
    assert (nouns["value"], nouns["stderr"]) == (0.5, pytest.approx(stats.sem(BASE)))
    assert hard["value"] == 0.9


def test_seeds_give_the_same_rows_again(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for model in ("base", "merged"):
        write_model(tmp_path, model, {"nouns": task(random.random(50).tolist(), "rouge")})
    assert rows(tmp_path, "base", "merged") == rows(tmp_path, "base", "merged")


def test_a_single_document_is_told_nothing_of(tmp_path: Path) -> None:
    write_model(tmp_path, "base", {"nouns": task([0.0])})
    write_model(tmp_path, "merged", {"nouns": task([1.0])})
    base, merged = rows(tmp_path, "base", "merged")
    assert base["stderr"] is None
    assert (merged["p"], merged["ci_low"], merged["detectable"], merged["verdict"]) == (
        1,
        None,
        None,
        "not distinguishable",
    )


def test_a_models_samples_that_are_cut_or_missing_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path, "base", {"nouns": task(BASE)})
    (file,) = (tmp_path / "benchmark/base").glob("samples_*")
    whole = file.read_text()
    again = f"type hydratune run_dir={tmp_path} 'stages=[evaluate]'."
    for text, said in (
        (whole[:-40], "is no whole file of samples"),
        ("".join(whole.splitlines(keepends=True)[:-1]), "are not of the 40 documents that base.json counts"),
        ("", "is no whole file of samples"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as refused:
            read_scores(tmp_path / "benchmark", "base")
        assert said in str(refused.value) and str(refused.value).endswith(again)
    file.unlink()
    with pytest.raises(
        ConfigError, match=r"The samples of task nouns are missing in .*base: type hydratune run_dir=.*"
    ):
        read_scores(tmp_path / "benchmark", "base")
