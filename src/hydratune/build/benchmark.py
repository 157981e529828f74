"""conf/benchmark -> lm-eval's TaskManager."""

from pathlib import Path

from lm_eval.tasks import TaskManager

from hydratune.build.data import DEMO
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
