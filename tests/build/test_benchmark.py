"""Which tasks a run may ask for: each mistake is one sentence, before anything is started."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hydratune import preflight
from hydratune.build.benchmark import build_tasks, test_documents
from hydratune.config.schema import BenchmarkConf, Config, ConfigError
from hydratune.preflight_tasks import check_tasks

test_documents.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for a test
ROWS = '{"question": "Is it an otter?", "answer": "yes"}\n{"question": "Is it a fern?", "answer": "no"}\n'
TASK = """task: mine
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task, mine."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(ROWS)
    (folder / "mine.yaml").write_text(TASK.format(folder=folder))
    return folder


@pytest.fixture
def said(
    tiny: Path, rows: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """The sentences of the refused command, which is to evaluate, as if the hub with its datasets were in reach."""
    monkeypatch.setattr(preflight, "settle_hub", lambda jobs: [])

    def call(*more: str) -> list[str]:
        text = refused(
            "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
            "run_dir=run", *more,
        )  # fmt: skip
        return [line.removeprefix("hydratune: ") for line in text.splitlines() if line.startswith("hydratune: ")]

    return call


def test_tasks_of_a_folder(tasks: Path) -> None:
    conf = BenchmarkConf(tasks=["[m]ine"], include_path=str(tasks))
    assert test_documents(conf) == {"mine": ["Is it an otter?", "Is it a fern?"]}
    found = build_tasks(conf).load(conf.tasks)
    assert list(found["tasks"]) == ["mine"] and found["groups"] == {}


NAMES = {
    "unknown": (
        ["tasks=[arc_esay]"],
        ["benchmark.tasks names 'arc_esay', which lm-eval does not know (did you mean arc_easy or arc_es?)."],
    ),
    "unknown, nothing near": (
        ["tasks=[xyzzyplugh]"], ["benchmark.tasks names 'xyzzyplugh', which lm-eval does not know."],
    ),
    "two unknown": (
        ["tasks=[demo_categry,mmluu_*]", "include_path=demo"],
        [
            "benchmark.tasks names 'demo_categry', which lm-eval does not know (did you mean demo_category?).",
            "benchmark.tasks has the pattern 'mmluu_*', which matches no task.",
        ],
    ),
    "a file": (
        ["tasks=[tasks/mine.yaml]"],
        [
            "benchmark.tasks names the file 'tasks/mine.yaml': set benchmark.include_path=FOLDER, and name the task itself."
        ],
    ),
    "no folder": (
        ["tasks=[mine]", "include_path=nowhere"],
        ["benchmark.include_path=nowhere: there is no such folder."],
    ),
    "twice": (
        ["tasks=[arc_easy,mmlu,arc_easy,mmlu_anatomy]"],
        [
            "benchmark.tasks names arc_easy 2 times: leave it there once.",
            "benchmark.tasks asks for mmlu_anatomy by mmlu and by mmlu_anatomy: leave one of the two out.",
        ],
    ),
    "within a tag": (
        ["tasks=[ai2_arc,arc_easy]"],
        ["benchmark.tasks asks for arc_easy by ai2_arc and by arc_easy: leave one of the two out."],
    ),
    "unsafe": (
        ["tasks=[humaneval]"],
        [
            "Tasks of benchmark.tasks execute what the model writes (humaneval): set "
            "benchmark.confirm_run_unsafe_code=true where that can do no harm, or leave them out."
        ],
    ),
    "images": (
        ["tasks=[mmmu_val_art,mmmu_val_design]"],
        ["Tasks of benchmark.tasks ask about images or sound (mmmu_val_art, mmmu_val_design): leave them out."],
    ),
    "nothing generates": (
        ["tasks=[demo_category]", "include_path=demo", "repeats=3"],
        ["benchmark.repeats=3 has no effect: none of the tasks generates; set benchmark.repeats=1."],
    ),
    "nothing generates, arguments": (
        ["tasks=[demo_category]", "include_path=demo", "+gen_kwargs.max_gen_toks=5"],
        ["benchmark.gen_kwargs has no effect: none of the tasks generates; set benchmark.gen_kwargs={}."],
    ),
    "examples": (
        ["tasks=[demo_category]", "include_path=demo", "num_fewshot=2"],
        [
            "benchmark.num_fewshot=2 takes its examples from the documents that are asked, so that an answer could stand in "
            "its own prompt (demo_category): name other rows under fewshot_split in the task's file, or set "
            "benchmark.num_fewshot=0."
        ],
    ),
    "examples never": (
        ["tasks=[leaderboard_gpqa_main]", "num_fewshot=2"],
        [
            "benchmark.num_fewshot=2 has no effect: the tasks' own files say num_fewshot: 0, which lm-eval keeps; set "
            "benchmark.num_fewshot=null."
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_and_settings(name: str, said: Callable[..., list[str]]) -> None:
    typed, sentences = NAMES[name]
    found = said(*(f"+benchmark.{one[1:]}" if one.startswith("+") else f"benchmark.{one}" for one in typed))
    assert found == sentences


def test_missing_packages(said: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    from hydratune.build import task_packages

    real = task_packages._there
    monkeypatch.setattr(task_packages, "_there", lambda m: real(m) and m not in ("langdetect", "math_verify"))
    task_packages._read.cache_clear()
    found = [line for line in said("benchmark=leaderboard") if "pip install" in line]
    task_packages._read.cache_clear()
    assert found[0] == (
        "Tasks of benchmark.tasks need further packages (leaderboard_math_algebra_hard, "
        "leaderboard_math_counting_and_prob_hard, leaderboard_math_geometry_hard and 4 more): pip install math_verify"
    )
    assert "(leaderboard_ifeval): pip install" in found[1] and "langdetect" in found[1] and len(found) == 2


# what is added to or replaced in the task's file, or a further file, and what is said
FILES = {
    "syntax": ({"other.yaml": "task: other\ndoc_to_text: 'open\n"}, "tasks/other.yaml, line 3: is not YAML: while scanning a quoted scalar found unexpected end of stream."),
    "not settings": ({"other.yaml": "- task\n"}, "tasks/other.yaml, line 1: holds no settings: write KEY: VALUE."),
    "a tag": ({"mine.yaml": "doc_to_decontamination_query: !fucntion utils.f\n"}, "tasks/mine.yaml, line 13: is not YAML: could not determine a constructor for the tag '!fucntion'."),
    "not to be included": ({"mine.yaml": "include: bse.yaml\n"}, "tasks/mine.yaml, line 13: there is no file bse.yaml to include."),
    "a round": ({"mine.yaml": "include:\n  - a.yaml\n", "a.yaml": "include: mine.yaml\ntask: a\n"}, "tasks/a.yaml, line 1: mine.yaml is included already, and a file may be once, and not by itself."),
    "key": ({"mine.yaml": "doc_to_txt: x\n"}, "tasks/mine.yaml, line 13: a task has no key doc_to_txt (did you mean doc_to_text?)."),
    "key of what is included": ({"mine.yaml": "include: base\n", "base": "\n\ndoc_to_txt: x\n"}, "tasks/base, line 3: a task has no key doc_to_txt (did you mean doc_to_text?)."),
    "output_type": ({"mine.yaml": ("multiple_choice", "multiple_choise")}, "tasks/mine.yaml, line 6: output_type is one of loglikelihood, multiple_choice, loglikelihood_rolling, generate_until, found 'multiple_choise' (did you mean multiple_choice?)."),
    "metric": ({"mine.yaml": ("metric: acc", "metric: accc")}, "tasks/mine.yaml, line 11: lm-eval has no metric 'accc' (did you mean acc?); for one of the package evaluate write hf_evaluate: true below it."),
    "aggregation": ({"mine.yaml": ("n: mean", "n: maen")}, "tasks/mine.yaml, line 12: lm-eval has no aggregation 'maen' (did you mean mean?)."),
    "metrics": ({"mine.yaml": ("- metric: acc", "- name: acc")}, "tasks/mine.yaml, line 11: an entry of metric_list begins with metric: NAME, found {'name': 'acc', 'aggregation': 'mean'}."),
    "filter": ({"mine.yaml": "filter_list:\n  - name: first\n    filter:\n      - function: regx\n"}, "tasks/mine.yaml, line 16: lm-eval has no filter 'regx' (did you mean regex?)."),
    "filters": ({"mine.yaml": "filter_list:\n  - filter: [{function: regex}]\n"}, "tasks/mine.yaml, line 14: an entry of filter_list has name: NAME, and below filter: a list of function: NAME."),
    "fewshot_config": ({"mine.yaml": "fewshot_config:\n  smapler: first_n\n"}, "tasks/mine.yaml, line 14: fewshot_config has no key smapler (did you mean sampler?)."),
    "sampler": ({"mine.yaml": "fewshot_config: {sampler: frist_n}\n"}, "tasks/mine.yaml, line 13: there is no sampler 'frist_n' (did you mean first_n?)."),
    "template": ({"mine.yaml": ("{{question}}", "{{question}")}, """tasks/mine.yaml, line 7: doc_to_text is not a template: unexpected '}'."""),
    "no rows": ({"mine.yaml": ("dataset_path: json", "metadata: {}")}, "tasks/mine.yaml, line 1: the task has no rows: write dataset_path, such as json with dataset_kwargs."),
    "no split": ({"mine.yaml": ("test_split: test", "fewshot_split: test")}, "tasks/mine.yaml, line 1: the task has neither test_split nor validation_split, whose documents are asked."),
    "no module": ({"mine.yaml": "process_docs: !function utlis.keep\n", "utils.py": "def keep(d): return d\n"}, "tasks/mine.yaml, line 13: !function utlis.keep: there is neither tasks/utlis.py nor a module utlis."),
    "no function": ({"mine.yaml": "process_docs: !function utils.kepe\n", "utils.py": "def keep(d): return d\n"}, "tasks/mine.yaml, line 13: !function utils.kepe: tasks/utils.py has no kepe (did you mean keep?)."),
    "a module's own error": ({"mine.yaml": "process_docs: !function broken.keep\n", "broken.py": "None.keep\n"}, "tasks/mine.yaml, line 13: !function broken.keep: tasks/broken.py can't be imported: AttributeError: 'NoneType' object has no attribute 'keep'."),
    "a module's package": ({"mine.yaml": "process_docs: !function wants.keep\n", "wants.py": "import no_such_package\n"}, "tasks/mine.yaml, line 13: !function wants.keep: tasks/wants.py can't be imported: ModuleNotFoundError: No module named 'no_such_package'."),
    "no name": ({"mine.yaml": ("task: mine", "task_alias: mine")}, "tasks/mine.yaml, line 1: the file names no task: write task: NAME."),
    "one name twice": ({"sub/b.yaml": "task: mine\n"}, "tasks/sub/b.yaml, line 1: mine is in tasks/mine.yaml too: give one of them another name."),
    "group's member": ({"g.yaml": "group: mine_too\ntask:\n  - mine\n  - arc_esay\n"}, "tasks/g.yaml, line 4: the group names 'arc_esay', which lm-eval does not know (did you mean arc_easy?)."),
    "group's key": ({"g.yaml": "group: mine_too\ntask: [mine]\nagregate_metric_list: []\n"}, "tasks/g.yaml, line 3: a group has no key agregate_metric_list (did you mean aggregate_metric_list?)."),
    "group's members": ({"g.yaml": "group: mine_too\ntask: mine\n"}, "tasks/g.yaml, line 2: task of a group is a list of names, found 'mine'."),
    "group's metric": ({"g.yaml": "group: mine_too\ntask: [mine]\naggregate_metric_list:\n  - metric: acc\n    wieght_by_size: true\n"}, "tasks/g.yaml, line 5: there is no key wieght_by_size (did you mean weight_by_size?)."),
    "a member's file": ({"g.yaml": "group: mine_too\ntask: [mine]\n", "mine.yaml": "doc_to_txt: x\n"}, "tasks/mine.yaml, line 13: a task has no key doc_to_txt (did you mean doc_to_text?)."),
    "a mapping": ({"mine.yaml": ("dataset_kwargs:", "dataset_kwargs: oops\nmetadata:")}, "tasks/mine.yaml, line 3: dataset_kwargs is a mapping, found 'oops'."),
    "a number": ({"mine.yaml": "num_fewshot: few\n"}, "tasks/mine.yaml, line 13: num_fewshot is a whole number, found 'few'."),
    "no choices": ({"mine.yaml": ('doc_to_choice: ["yes", "no"]\n', "")}, "tasks/mine.yaml, line 1: the task mine has no doc_to_choice, which output_type: multiple_choice needs."),
    "no question": ({"mine.yaml": ('doc_to_text: "{{question}}"\n', "")}, "tasks/mine.yaml, line 1: the task mine has no doc_to_text, which every task needs."),
    "no file": ({"mine.yaml": ("rows.jsonl", "gone.jsonl")}, "The task mine reads tasks/gone.jsonl, and there is no such file."),
    "through a cache": ({"mine.yaml": ("test: ", "test: simplecache::https://host.invalid")}, "The task mine reads simplecache::https://host.invalidtasks/rows.jsonl, and datasets reads nothing through simplecache: write https://host.invalidtasks/rows.jsonl, of which it keeps a copy by itself."),
    "no archive": ({"mine.yaml": ("test: ", "test: zip://a.jsonl::gone")}, "The task mine reads gonetasks/rows.jsonl, and there is no such file."),
    "split": ({"mine.yaml": ("test_split: test", "test_split: tset")}, "tasks/mine.yaml, line 5: test_split: there is no split tset (did you mean test?), found test."),
    "column of a template": ({"mine.yaml": ("{{question}}", "{{qestion}}")}, "tasks/mine.yaml, line 7: doc_to_text: UndefinedError: 'qestion' is undefined."),
    "column": ({"mine.yaml": ("doc_to_target: answer", "doc_to_target: answr")}, 'tasks/mine.yaml, line 9: doc_to_target: there is no column answr (did you mean answer?), found question, answer; for a text that is always the same write {{ "answr" }}.'),
    "choices": ({"mine.yaml": ('["yes", "no"]', "'{{answer}}'")}, "tasks/mine.yaml, line 8: doc_to_choice: what it renders is no list: write a column's name, or a list of texts."),
    "an answer that is no choice": ({"rows.jsonl": '{"question": "Is it moss?", "answer": "maybe"}\n'}, "tasks/mine.yaml, line 9: document 2: the answer 'maybe' is not among the choices yes, no."),
    "rows": ({"rows.jsonl": "{{\n"}, "tasks/mine.yaml, line 3: the rows can't be loaded: ArrowInvalid: JSON parse error: Missing a name for object member. in row 2."),
    "what makes documents": ({"mine.yaml": "process_docs: !function utils.keep\n", "utils.py": "def keep(docs): return docs.mop(print)\n"}, "tasks/mine.yaml, line 13: process_docs: AttributeError: 'Dataset' object has no attribute 'mop'."),
    "examples": ({"mine.yaml": "fewshot_config:\n  samples:\n    - {question: Is it it?}\nnum_fewshot: 1\n"}, "tasks/mine.yaml, line 9: doc_to_target: KeyError: 'answer'."),
    "group's number": ({"g.yaml": "group: mine_too\ntask:\n  - mine\n  - 5\n"}, "tasks/g.yaml, line 4: a member of a group is a name, or has task: NAME, found 5."),
    "group's lists": ({"g.yaml": "group: mine_too\ntask:\n  - group: inner\n    task:\n      - task: [mine]\n"}, "tasks/g.yaml, line 5: a member of a group is a name, or has task: NAME, found {'task': ['mine']}."),
    "tag's number": ({"mine.yaml": "tag: 5\n"}, "tasks/mine.yaml, line 13: tag is a text or a list of texts, found 5."),
    "tag's lists": ({"mine.yaml": "tag: [mine_too, [5]]\n"}, "tasks/mine.yaml, line 13: tag is a text or a list of texts, found ['mine_too', [5]]."),
    "a number for a name": ({"mine.yaml": ("task: mine", "task: 5"), "b.yaml": "task: other\n"}, "tasks/mine.yaml, line 1: the file names no task, and a name is text, found 5: write task: NAME."),
    "no documents": ({"mine.yaml": "process_docs: !function utils.keep\n", "utils.py": "def keep(docs): return docs.filter(lambda doc: False)\n"}, "tasks/mine.yaml, line 13: process_docs: the task mine has no document to ask: give it rows."),
    "a tag's file": ({"mine.yaml": "doc_to_txt: x\ntag: mine_too\n"}, "tasks/mine.yaml, line 13: a task has no key doc_to_txt (did you mean doc_to_text?)."),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, said: Callable[..., list[str]], tasks: Path) -> None:
    files, sentence = FILES[name]
    for path, change in files.items():
        file = tasks / path
        file.parent.mkdir(exist_ok=True)
        if isinstance(change, tuple):
            assert change[0] in file.read_text()
            file.write_text(file.read_text().replace(*change))
        else:
            file.write_text((file.read_text() if file.exists() else "") + change)
    asked = "mine_too" if any("mine_too" in str(change) for change in files.values()) else "mine"
    found = said(f"benchmark.tasks=[{asked}]", "benchmark.include_path=tasks")
    assert sentence in [line.replace(f"{tasks.parent}/", "") for line in found]


@pytest.mark.parametrize("asked", ["other", "ot*", "mine_too"])
def test_a_file_that_can_not_be_read_may_have_any_name(asked: str, tasks: Path, said: Callable[..., list[str]]) -> None:
    (tasks / "other.yaml").write_text("task: other\ndoc_to_text: 'open\n")
    (tasks / "g.yaml").write_text("group: mine_too\ntask: [mine, other]\n")
    (sentence,) = said(f"benchmark.tasks=['{asked}']", "benchmark.include_path=tasks")
    assert "other.yaml, line 3: is not YAML: " in sentence


@pytest.mark.parametrize(("kind", "text"), [("json", ""), ("csv", "question,answer\n")])
def test_a_task_without_rows(kind: str, text: str, tasks: Path, said: Callable[..., list[str]]) -> None:
    (tasks / "rows.jsonl").write_text(text)
    (tasks / "mine.yaml").write_text(TASK.format(folder=tasks).replace("json\n", f"{kind}\n"))
    (sentence,) = said("benchmark.tasks=[mine]", "benchmark.include_path=tasks")
    assert sentence.endswith("tasks/mine.yaml, line 3: the rows can't be loaded: a split has none.")


def test_a_pattern_expands_to_nothing_unsound(tasks: Path, said: Callable[..., list[str]]) -> None:
    (tasks / "g.yaml").write_text("group: mine_too\ntask: [mine, [5], {task: {a: b}}]\n")
    assert said("benchmark.tasks=['mine_t*']", "benchmark.include_path=tasks") == [
        f"tasks/g.yaml, line 2: a member of a group is a name, or has task: NAME, found {found}."
        for found in ("[5]", "{'task': {'a': 'b'}}")
    ]


def test_a_group_of_tasks_over_rows_that_are_here(tasks: Path, tmp_path: Path) -> None:
    """Each is made with what the group says of it, as evaluate makes it."""
    described = TASK.format(folder=tasks).replace("task: mine", "task: inner").replace("\n", "\n    ").rstrip()
    mine = tasks / "mine.yaml"
    mine.write_text(mine.read_text().replace("doc_to_target: answer", "doc_to_target: reply"))

    def check(target: str) -> None:
        (tasks / "g.yaml").write_text(
            f"group: all\ntask:\n  - task: mine\n    doc_to_target: {target}\n    num_fewshot: 1\n  - {described}\n"
        )
        check_tasks(Config(cache_dir=str(tmp_path), benchmark=BenchmarkConf(tasks=["all"], include_path=str(tasks))))

    check("answer")
    with pytest.raises(ConfigError, match=r"mine\.yaml, line 9: doc_to_target: there is no column ansewr"):
        check("ansewr")


def test_sound_files_are_taken(tasks: Path, said: Callable[..., list[str]]) -> None:
    """Each key in the ways that lm-eval takes, and a mistake where nothing that is asked for needs the file."""
    (tasks / "utils.py").write_text("def keep(docs): return docs\ndef count(items): return len(items)\n")
    (tasks / "_base.yaml").write_text("doc_to_text: ''\ntag: [few, fewer]\n")
    (tasks / "second.yaml").write_text(
        TASK.format(folder=tasks).replace("task: mine", "include: _base.yaml\ntask: second")
        + "  - metric: own\n    aggregation: !function utils.count\nprocess_docs: !function utils.keep\n"
        "process_results: !function utils.keep\nfewshot_config: {sampler: first_n, samples: [{question: a, answer: no}]}\n"
        "metadata: {version: 1}\nrepeats: 2\nfilter_list:\n  - name: x\n    filter: [{function: take_first}]\n"
    )
    (tasks / "g.yaml").write_text(
        "group: both\ngroup_alias: B\ntask:\n  - mine\n  - task: second\n    num_fewshot: 1\n  - group: inner\n"
        "    task: [arc_easy]\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: false\n"
    )
    (tasks / "unasked.yaml").write_text("task: unasked\ndoc_to_txt: x\n")
    (tasks / "class.yaml").write_text("task: classy\nclass: !function utils.keep\nanything: goes\n")
    found = said("benchmark.tasks=[both,classy,xyzzyplugh]", "benchmark.include_path=tasks")
    assert [line for line in found if "tasks" in line] == [
        "benchmark.tasks names 'xyzzyplugh', which lm-eval does not know."
    ]


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (
            "base/demo_categry/acc",
            "is about task 'demo_categry', which is none of benchmark.tasks (did you mean demo_category?).",
        ),
        ("base/demo_category/acuracy", "task demo_category has no metric 'acuracy': it has acc"),
    ],
)
def test_an_objective_that_no_task_measures(objective: str, said: str) -> None:
    config = Config(objective=objective)
    config.benchmark.tasks, config.benchmark.include_path, config.benchmark.models = ["demo_category"], "demo", ["base"]
    with pytest.raises(ConfigError) as error:
        check_tasks(config)
    assert said in str(error.value)
    config.objective = "base/demo_category/acc"
    check_tasks(config)
