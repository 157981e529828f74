"""lm-eval's names without lm-eval's ten seconds: the same index, the same tasks."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api import task as lm_eval_task
from lm_eval.config.task import TaskConfig
from lm_eval.tasks import TaskManager

from hydratune.build import task_index
from hydratune.build.task_index import Tasks, own_entries
from hydratune.build.task_packages import impossible, missing
from hydratune.config.schema import ConfigError

GROUPS = [
    ["arc_easy"], ["arc_easy", "hellaswag", "winogrande"], ["ai2_arc"], ["mmlu"], ["bbh"], ["agieval"], ["belebele"],
    ["leaderboard_bbh", "leaderboard_gpqa", "leaderboard_musr", "leaderboard_mmlu_pro"], ["openllm"], ["pythia"],
    ["mmlu_flan_cot_zeroshot"], ["multimedqa"], ["glue"],
]  # fmt: skip


@pytest.fixture(scope="module")
def true_tasks() -> TaskManager:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager()


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks without their datasets, which are on the hub."""

    def keep(self: Any, data_dir: Any = None, cache_dir: Any = None, mode: Any = None, config: Any = None) -> None:
        self._config, self.said = TaskConfig(**config), config

    monkeypatch.setattr(lm_eval_task.ConfigurableTask, "__init__", keep)


@pytest.mark.slow
def test_every_name_is_that_of_lm_eval(true_tasks: TaskManager) -> None:
    def plain(tasks: TaskManager) -> list[tuple[Any, ...]]:
        return [(n, e.kind, e.yaml_path, sorted(e.tags)) for n, e in tasks.task_index.items()]

    ours = Tasks(None, ["arc_easy"])
    assert plain(ours) == plain(true_tasks)
    assert len(ours.all_tasks) > 14_000
    for name in ("all_tasks", "all_subtasks", "all_groups", "all_tags"):
        assert getattr(ours, name) == getattr(true_tasks, name)


@pytest.mark.slow
@pytest.mark.parametrize("names", GROUPS, ids=str)
def test_tasks_and_groups_are_those_of_lm_eval(names: list[str], true_tasks: TaskManager, undone: None) -> None:
    def plain(found: Any) -> Any:
        tasks = {name: repr(getattr(task, "said", type(task))) for name, task in found["tasks"].items()}
        return tasks, list(tasks), found["group_map"], repr(found["groups"])

    ours = Tasks(None, names)
    assert plain(ours.load(names)) == plain(true_tasks.load(names))


@pytest.mark.parametrize("names", GROUPS, ids=str)
def test_what_a_name_stands_for_is_what_lm_eval_makes(names: list[str], undone: None) -> None:
    tasks = Tasks(None, names)
    found = {leaf.name: leaf.config for name in names for leaf in tasks.leaves(name)}
    made = tasks.load(names)["tasks"]
    assert list(found) == list(made)
    for name, config in found.items():
        said = getattr(made[name], "said", {})
        assert [config.get(key) for key in ("output_type", "num_fewshot", "test_split") if key in said] == [
            said[key] for key in ("output_type", "num_fewshot", "test_split") if key in said
        ]


def test_patterns() -> None:
    tasks = Tasks(None, ["arc_*"])
    assert tasks.expanded(["gsm8k", "leaderboard_m*", "nothing_*"]) == [
        "gsm8k", "leaderboard_math_hard", "leaderboard_mmlu_pro", "leaderboard_musr",
    ]  # fmt: skip
    assert "mmlu_anatomy" not in tasks.expanded(["mmlu*"])  # mmlu has it
    assert len(tasks.expanded(["arc_easy*"])) == 1


def test_a_group_within_itself(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("group: a\ntask: [b]\n")
    (tmp_path / "b.yaml").write_text("group: b\ntask: [a]\n")
    with pytest.raises(ConfigError, match="The group a of lm-eval's tasks contains itself"):
        list(Tasks(tmp_path, ["a"]).leaves("a"))


def test_the_users_task_wins(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: arc_easy\ndataset_path: json\n")
    (tmp_path / "group.yaml").write_text("group: both\ntask: [arc_easy, arc_challenge]\n")
    tasks = Tasks(tmp_path, ["both"])
    assert [leaf.config["dataset_path"] for leaf in tasks.leaves("both")] == ["json", "allenai/ai2_arc"]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often lm-eval's files were gone through."""
    times, real = [], task_index._heads.__wrapped__

    def counted() -> dict[str, Any]:
        times.append(1)
        return {name: head for name, head in heads.items()}

    heads = real()
    monkeypatch.setattr(task_index, "_heads", counted)
    yield times


def test_the_cache(unread: list[int], tmp_path: Path) -> None:
    whole = own_entries(tmp_path)
    assert list(tmp_path.iterdir()) == []  # a check alone writes nothing
    assert own_entries(tmp_path, keep=True) == whole
    assert len(unread) == 2
    assert own_entries(tmp_path) == own_entries(tmp_path, keep=True) == whole
    assert len(unread) == 2

    (file,) = (tmp_path / "lm_eval_tasks").iterdir()
    for damaged in (b"", file.read_bytes()[:-100], b"[1, 2]", b'{"arc/arc_easy.yaml": 3}', b"\xff\xfe"):
        file.write_bytes(damaged)
        assert own_entries(tmp_path, keep=True) == whole
        assert json.loads(file.read_bytes())
    assert len(unread) == 7
    assert list(file.parent.iterdir()) == [file]


def test_a_file_that_was_edited_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "tasks"
    (own / "__pycache__").mkdir(parents=True)
    file = own / "a.yaml"
    file.write_text("task: one\n")
    (own / ".#a.yaml").symlink_to("nobody@nowhere")  # an editor's
    monkeypatch.setattr(task_index, "OWN", own)
    for name in ("one", "three", "eleven"):
        file.write_text(f"task: {name}\n")
        monkeypatch.setattr(task_index, "_heads", task_index._heads.__wrapped__)
        task_index._head.cache_clear()
        assert set(own_entries(tmp_path, keep=True)) == {name}
        monkeypatch.undo()
        monkeypatch.setattr(task_index, "OWN", own)
        before = task_index._state()
        (own / "__pycache__" / f"{name}.pyc").touch()
        assert task_index._state() == before


def test_a_cache_that_cannot_be_written(unread: list[int], tmp_path: Path) -> None:
    (tmp_path / "lm_eval_tasks").write_text("a file where a folder would be")
    assert len(own_entries(tmp_path, keep=True)) > 14_000


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("task: a\ntag: [x, 'y']\n", {"a", "x", "y"}),
        ("task: a\ntag:\n# said\n- x\n\n- y # why\ndoc_to_text: z\n", {"a", "x", "y"}),
        ('"task": "a b"\n"tag": "x"\n', {"a b", "x"}),
        ("{task: a, tag: x}\n", {"a", "x"}),
        ("--- # first\ntask: a\n", {"a"}),
        ("base: &b {tag: x}\n<<: *b\ntask: a\n", {"a", "x"}),
        ("task:\n  a\n", {"a"}),
        ("task: a\n  b\n", {"a b"}),
        ("task: 'it''s'\n", {"it's"}),
        ('task: "\\u0061"\n', {"a"}),
        ("task: a # why\r\ntag: x\r\n", {"a", "x"}),
        ("group: a\ntask: [b, {task: c, tag: d}]\n", {"a"}),
        ("group: a\ntask:\n  - b\n  - group: c\n    task: d\n", {"a"}),
        ("class: !function task.A\ntask: a\ngroup: b\n", {"a"}),
        ("class: !function task.A\n", set()),
        ("dataset_path: json\ndescription: >\n  task: b\n", set()),
        ("task: a\ntask: [\n", set()),
        ("include: base\ntask: a\n", {"a", "of_base"}),
        ("include: [base, other/base]\n", {"named", "of_base"}),
        ("include:\n  - base\n  - other/base\ntag: x\n", {"named", "x"}),
        ("include: missing\ntask: a\n", set()),
        ("include: a.yaml\ntask: a\n", set()),
    ],
)
def test_ways_of_writing_a_file(text: str, names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_bytes(text.encode())
    (tmp_path / "base").write_text("tag: of_base\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "base").write_text("task: named\n")
    monkeypatch.setattr(task_index, "OWN", tmp_path)
    monkeypatch.setattr(task_index, "_heads", task_index._heads.__wrapped__)
    found = own_entries(None)
    true = TaskManager(include_path=str(tmp_path), include_defaults=False).task_index
    assert {n: (e.kind, e.tags) for n, e in found.items()} == {n: (e.kind, e.tags) for n, e in true.items()}
    assert set(found) == names


def test_packages_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydratune.build import task_packages

    tasks = Tasks(None, ["gsm8k"])

    def of(name: str) -> dict[str, Any]:
        return next(tasks.leaves(name)).config

    there = {"langdetect": False, "math_verify": False, "immutabledict": True}
    monkeypatch.setattr(task_packages, "_there", lambda module: there.get(module, True))
    task_packages._read.cache_clear()
    try:
        assert missing(of("leaderboard_ifeval")) == {"langdetect"}  # two imports away
        assert missing(of("leaderboard_math_algebra_hard")) == missing(of("minerva_math_algebra")) == {"math_verify"}
        assert missing(of("gsm8k")) == missing(of("mmlu_anatomy")) == set()
    finally:
        task_packages._read.cache_clear()
    monkeypatch.setattr(task_packages, "version", lambda _: "4.9.3")
    task_packages._other_versions.cache_clear()
    assert impossible(of("minerva_math_algebra")) == {("antlr4-python3-runtime", "4.11", "4.9.3")}
    assert impossible(of("leaderboard_math_algebra_hard")) == set()
