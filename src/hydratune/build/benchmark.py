"""conf/benchmark -> lm-eval's TaskManager, and the documents of its tasks."""

import os
from pathlib import Path
from typing import Any

from hydratune.build.sources import DEMO
from hydratune.build.task_index import Tasks
from hydratune.config.schema import BenchmarkConf, ConfigError


def build_tasks(conf: BenchmarkConf, cache_root: Path | None = None) -> Tasks:
    """Knows the tasks of `include_path`, and lm-eval's own where one of them is asked for; loads by name or pattern.

    What is found of lm-eval's own is kept in the cache. Raises ConfigError where the folder is not there.
    """
    if conf.confirm_run_unsafe_code:
        os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")  # the metric's own question, which is answered by then
    return Tasks(task_folder(conf), asked_of_lm_eval(conf), cache_root, keep=True)


def asked_of_lm_eval(conf: BenchmarkConf) -> list[str]:
    """The names and patterns that are no own_tasks."""
    return [name for name in conf.tasks if name not in conf.own_tasks]


def task_folder(conf: BenchmarkConf) -> Path | None:
    """Where the user's own tasks are. Raises ConfigError where there is no such folder."""
    if conf.include_path is None:
        return None
    folder = DEMO if conf.include_path == "demo" else Path(conf.include_path)
    if not folder.is_dir():
        raise ConfigError(f"benchmark.include_path={folder}: there is no such folder.")
    return folder


def test_documents(conf: BenchmarkConf) -> dict[str, list[str] | str]:
    """Task -> the text of each document that it asks about, or why they can't be had here."""
    found: dict[str, list[str] | str] = {}
    tasks = build_tasks(conf)
    for name in tasks.expanded(asked_of_lm_eval(conf)):
        try:
            for task_name, task in tasks.load([name])["tasks"].items():
                docs = task.test_docs() if task.has_test_docs() else task.validation_docs()
                found[task_name] = [_text(task, doc) for doc in docs]
        except Exception as error:  # of any kind: a dataset that can't be reached, a task's own code
            found[name] = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return found


def _text(task: Any, doc: Any) -> str:
    """What is asked; of a task that asks by an empty text and choices alone, those."""
    asked = task.doc_to_text(doc)
    return asked if isinstance(asked, str) and asked.strip() else " ".join(map(str, doc.values()))
