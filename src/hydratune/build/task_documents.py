"""Tasks over files that are here: made as evaluate makes them, and the prompts of their documents rendered."""

import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from hydratune.build.benchmark import task_folder
from hydratune.build.data import bad_rows
from hydratune.build.needs import rows_are_here
from hydratune.build.task_checks import SPLITS
from hydratune.build.task_files import Whole, put_together
from hydratune.build.task_index import Leaf, Tasks
from hydratune.config.schema import BenchmarkConf, ConfigError
from hydratune.config.values import suggestion

CHECKED = 1000  # documents of each task that are rendered before anything is started
RENDERED = ("doc_to_text", "doc_to_target", "doc_to_choice")
READ = (*RENDERED, "process_docs", "description", "gen_prefix")  # keys of which an error may be


def document_problems(conf: BenchmarkConf, tasks: Tasks, asked: list[str]) -> list[str]:
    """A sentence for each of the user's own tasks that can't be made of its rows, or whose documents can't be asked."""
    found: list[str] = []
    folder = task_folder(conf)
    for leaf in (leaf for name in tasks.expanded(asked) for leaf in tasks.leaves(name)) if folder else ():
        if leaf.entry and folder not in Path(str(leaf.entry.yaml_path)).parents:
            continue  # lm-eval's own
        lacking = list(_lacking(leaf))
        try:
            if not lacking and rows_are_here(leaf.config):
                lacking = list(_before_making(leaf)) or _of_documents(leaf, conf)
        except ConfigError as error:
            lacking = error.sentences
        found += lacking
    return found


def _place(leaf: Leaf) -> Any:
    """A function from a key to file and line, or to the task's name where a group's file describes it."""
    if leaf.entry is None or leaf.entry.yaml_path is None:
        return lambda *key: f"The task {leaf.name}"
    whole: Whole = put_together(Path(leaf.entry.yaml_path), set(), [])
    return whole.at


def _lacking(leaf: Leaf) -> Iterator[str]:
    """Keys without which lm-eval makes no task, in the file or in the group that names it."""
    config = leaf.config
    if "class" in config or config.get("use_prompt"):
        return
    chosen = config.get("output_type") == "multiple_choice"
    for key in RENDERED[: 3 if chosen else 2]:
        if config.get(key) is None:
            needs = "output_type: multiple_choice" if key == "doc_to_choice" else "every task"
            yield f"{_place(leaf)('task')}: the task {leaf.name} has no {key}, which {needs} needs."


def _before_making(leaf: Leaf) -> Iterator[str]:
    """What of the rows themselves shows: lm-eval would take a column's misspelt name for a text."""
    at, config = _place(leaf), leaf.config
    try:
        arguments = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"}
        rows: Any = datasets.load_dataset(config["dataset_path"], config.get("dataset_name"), **arguments)
    except Exception as error:  # of any kind: the library's own, and those of its readers
        cause = error.__cause__ or error
        none = isinstance(cause, StopIteration) or "corresponds to no data" in str(cause)
        said = "a split has none" if none else _said(cause)
        yield f"{at('dataset_kwargs')}: the rows can't be loaded: {said}."
        return
    splits = list(rows) if isinstance(rows, dict) else []
    wrong = [(key, config[key]) for key in SPLITS if config.get(key) is not None and config[key] not in splits]
    for key, split in wrong:
        yield f"{at(key)}: {key}: there is no split {split}{suggestion(split, splits)}, found {', '.join(splits)}."
    columns = None if wrong else rows[config.get("test_split") or config["validation_split"]].column_names
    if not columns or config.get("process_docs"):
        return  # which may make others
    choices = config["doc_to_choice"] if isinstance(config.get("doc_to_choice"), list) else []
    for key in RENDERED:
        value = config.get(key)
        if isinstance(value, str) and value.isidentifier() and value not in [*columns, *choices]:
            yield (
                f"{at(key)}: {key}: there is no column {value}{suggestion(value, columns)}, found {', '.join(columns)}; for "
                f'a text that is always the same write {{{{ "{value}" }}}}.'
            )


def _of_documents(leaf: Leaf, conf: BenchmarkConf) -> list[str]:
    """Sentences about the task and its first documents. Raises ConfigError for those that can't be rendered."""
    at = _place(leaf)
    try:
        task = leaf.made()
        task.set_fewshot_seed(conf.seed)
        own = task.config.num_fewshot
        shown = own if own == 0 or conf.num_fewshot is None else conf.num_fewshot
        first = next(iter(task.eval_docs), None)
        if first is None:
            return [_nothing_asked(leaf)]
        task.fewshot_context(first, num_fewshot=shown or 0)
    except Exception as error:  # of any kind: of templates, of the user's own functions
        if isinstance(error, IndexError) and _reads_first(error):
            return [_nothing_asked(leaf)]
        key = _key_of(error)
        return [f"{at(key or 'task')}: {key or leaf.name}: {_said(error)}."]
    wrong = []
    for number, doc in enumerate(islice(task.eval_docs, min(CHECKED, conf.limit or CHECKED))):
        try:
            said = _unanswerable(task, doc)
            key = "doc_to_target"
        except Exception as error:
            key, said = _key_of(error) or "task", _said(error)
        if said:
            wrong.append(f"{at(key)}: document {number}: {said}.")
    if wrong:
        raise bad_rows(wrong)
    return []


def _nothing_asked(leaf: Leaf) -> str:
    key = next((key for key in ("process_docs", "test_split", "validation_split") if leaf.config.get(key)), "task")
    return f"{_place(leaf)(key)}: {key}: the task {leaf.name} has no document to ask: give it rows."


def _reads_first(error: BaseException) -> bool:
    """Whether lm-eval was at the first document, which it renders when it makes a task."""
    return any("task_docs[0]" in (frame.line or "") for frame in traceback.extract_tb(error.__traceback__))


def _unanswerable(task: Any, doc: Any) -> str:
    """What is wrong with the answer to a document, which is rendered for it; empty where nothing is."""
    task.construct_requests(doc=doc, ctx=task.fewshot_context(doc, num_fewshot=0))
    target = task.doc_to_target(doc)
    if task.OUTPUT_TYPE != "multiple_choice" or task.config.process_results is not None:
        return ""
    if task.multiple_input:  # the choices are the prompts, of which doc_to_text says the right one
        target = task.doc_to_text(doc)
    choices = task.doc_to_choice(doc)
    for one in target if isinstance(target, list) else [target]:
        if one not in (range(len(choices)) if isinstance(one, int) else choices):
            return f"the answer {one!r:.60} is not among the choices {', '.join(map(str, choices))}"
    return ""


def _key_of(error: BaseException) -> str | None:
    """The key that lm-eval was reading: its methods are called as the keys are, and others are read in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    read = [key for frame in frames for key in READ if frame.name == key or f"config.{key}" in (frame.line or "")]
    return read[-1] if read else None


def _said(error: BaseException) -> str:
    if any(frame.name == "literal_eval" for frame in traceback.extract_tb(error.__traceback__)):
        return "what it renders is no list: write a column's name, or a list of texts"
    said = " ".join(str(error).split())[:200].rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
