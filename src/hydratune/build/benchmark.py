"""conf/benchmark -> lm-eval's TaskManager, and the documents of its tasks."""

from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from hydratune.build.sources import DEMO
from hydratune.config.schema import BenchmarkConf, ConfigError


def build_tasks(conf: BenchmarkConf) -> TaskManager:
    """Knows the tasks of `include_path`, and lm-eval's own where one of them is asked for.

    Reading lm-eval's own 14,000 names takes 10 s. Raises ConfigError where the folder is not there.
    """
    if conf.include_path is None:
        return TaskManager()
    folder = DEMO if conf.include_path == "demo" else Path(conf.include_path)
    if not folder.is_dir():
        raise ConfigError(f"benchmark.include_path={folder}: there is no such folder.")
    own = TaskManager(include_path=str(folder), include_defaults=False)
    return own if set(conf.tasks) <= set(own.all_tasks) else TaskManager(include_path=str(folder))


def test_documents(conf: BenchmarkConf) -> dict[str, list[str] | str]:
    """Task -> the text of each document that it asks about, or why they can't be had here."""
    found: dict[str, list[str] | str] = {}
    manager = build_tasks(conf)
    for name in conf.tasks:
        try:
            for task_name, task in manager.load([name])["tasks"].items():
                docs = task.test_docs() if task.has_test_docs() else task.validation_docs()
                found[task_name] = [_text(task, doc) for doc in docs]
        except Exception as error:  # of any kind: a dataset that can't be reached, a task's own code
            found[name] = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return found


def _text(task: Any, doc: Any) -> str:
    """What is asked; of a task that asks by an empty text and choices alone, those."""
    asked = task.doc_to_text(doc)
    return asked if isinstance(asked, str) and asked.strip() else " ".join(map(str, doc.values()))
