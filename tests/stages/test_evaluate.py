"""The comparison of models on the same documents."""

import pytest
from scipy import stats

from hydratune.stages.evaluate import compare


def results(higher_is_better: bool = True, **scores: list[float]) -> dict[str, dict[str, object]]:
    return {
        model: {
            "higher_is_better": {"task": {"acc": higher_is_better}},
            "samples": {
                "task": [{"doc_id": i, "acc": v, "metrics": ["acc"], "filter": "none"} for i, v in enumerate(values)]
            },
        }
        for model, values in scores.items()
    }


BASE = [1, 0, 0, 1, 0, 0, 0, 1, 0, 0]
BETTER = [1, 1, 1, 1, 1, 1, 0, 1, 1, 1]
ALIKE = [1, 0, 1, 0, 0, 0, 0, 1, 0, 0]


def test_the_difference_is_scipys_paired_test() -> None:
    base, merged = compare("task", results(base=BASE, merged=BETTER))
    assert base["value"] == pytest.approx(0.3)
    assert base["stderr"] == pytest.approx(stats.sem(BASE))
    assert merged["difference"] == pytest.approx(0.6)
    statistic = merged["difference"] / merged["difference_stderr"]
    assert statistic == pytest.approx(stats.ttest_rel(BETTER, BASE).statistic)
    assert merged["verdict"] == "better"


def test_the_other_way_round_is_worse() -> None:
    assert compare("task", results(base=BETTER, merged=BASE))[1]["verdict"] == "worse"


def test_less_is_better_where_the_metric_says_so() -> None:
    assert compare("task", results(False, base=BETTER, merged=BASE))[1]["verdict"] == "better"


def test_what_can_not_be_told_apart_is_said_to_be_so() -> None:
    assert stats.ttest_rel(ALIKE, BASE).pvalue > 0.05
    assert compare("task", results(base=BASE, merged=ALIKE))[1]["verdict"] == "not distinguishable"
    assert compare("task", results(base=BASE, merged=BASE))[1]["verdict"] == "not distinguishable"


def test_other_documents_are_not_compared() -> None:
    rows = compare("task", results(base=BASE, merged=BETTER[:5]))
    assert "difference" not in rows[1]


def test_one_document_has_no_error() -> None:
    (row,) = compare("task", results(base=[1]))
    assert row["stderr"] is None
