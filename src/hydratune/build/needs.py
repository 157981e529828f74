"""What a run needs from the hub: its model, the sources of its rows, and the datasets of its lm-eval tasks."""

import glob
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from hydratune.build.data import sources_of
from hydratune.build.hub import Need, address, data_files, is_remote
from hydratune.build.source import is_on_hub
from hydratune.build.sources import is_here
from hydratune.config.schema import BenchmarkConf, ConfigError, DataConf, ModelConf, SourceConf

# of load_dataset's arguments, those that don't choose what is read
NO_CHOICE = ("trust_remote_code", "streaming", "keep_in_memory", "num_proc", "verification_mode", "save_infos")
# steps of a chained URL that keep a copy, as datasets does by itself
KEEPING = ("simplecache", "filecache", "blockcache", "cached")


def model_need(conf: ModelConf, weights: bool = True) -> Need | None:
    """The model, where it is one of the hub; `weights`: whether they are read, or its configuration and tokenizer alone."""
    if not is_on_hub(conf):
        return None
    assert conf.name_or_path
    whole = weights or conf.gguf_file is not None  # which is one file
    return Need(
        "model", conf.name_or_path, conf.revision, file=conf.gguf_file, weights=whole, token=conf.extra.get("token")
    )


def data_needs(conf: DataConf) -> list[Need]:
    """The sources of training and validation rows that are datasets of the hub."""
    return [need for source, key, _ in sources_of(conf) if (need := _source_need(source, key))]


def _source_need(source: SourceConf, asked: str) -> Need | None:
    if source.path is None or is_here(source.path):
        return None
    return Need("dataset", source.path, source.revision, source.name, asked=asked)


def task_needs(conf: BenchmarkConf, cache_root: Path) -> list[Need]:
    """The datasets of the tasks, those within groups too; a task with code of its own that makes its rows has none."""
    own = [
        need
        for name, task in conf.own_tasks.items()
        for key in ("path", "fewshot_path")
        if name in conf.tasks and (need := _own_need(task, key, f"benchmark.own_tasks.{name}.{key}"))
    ]
    return own + [need for leaf in _leaves(_plain(conf), cache_root) if (need := _task_need(*leaf))]


def _own_need(task: dict[str, Any], key: str, asked: str) -> Need | None:
    of_hub: dict[str, Any] = {"name": task.get("name"), "revision": task.get("revision")} if key == "path" else {}
    return _source_need(SourceConf(**{"path": task.get(key), **of_hub}), asked)


def missing_files(conf: BenchmarkConf, cache_root: Path) -> list[str]:
    """A sentence for each task whose rows should be in a file or folder here that isn't, or are nowhere that is read."""
    return [sentence for leaf in _leaves(_plain(conf), cache_root) for sentence in _files_not_here(*leaf)]


def files_here(config: dict[str, Any]) -> list[Path]:
    """The files on this machine that a task's rows are read from."""
    path, arguments = _dataset(config)
    if path is None:
        return []
    if not _is_kind(path):
        return [file for file in Path(path).expanduser().rglob("*") if file.is_file()] if _is_folder(path) else []
    folder = Path(arguments.get("data_dir") or "").expanduser()
    named = [address(file).removeprefix("file://") for file in data_files(arguments) if not is_remote(file)]
    return [Path(found) for name in named or ["*"] for found in glob.glob(str(folder / name), recursive=True)]


def rows_are_here(config: dict[str, Any]) -> bool:
    """Whether the rows of a task are files here, of which no code but datasets' own makes rows."""
    path, arguments = _dataset(config)
    if path is None or "class" in config:
        return False
    return not any(map(is_remote, data_files(arguments))) if _is_kind(path) else _is_folder(path) and "://" not in path


def _task_need(name: str, config: dict[str, Any]) -> Need | None:
    path, arguments = _dataset(config)
    if path is None or (_is_folder(path) and not path.startswith("hf://")):
        return None
    if _is_kind(path) and not any(map(is_remote, data_files(arguments))):
        return None
    revision = arguments.pop("revision", None)
    options = json.dumps(arguments, sort_keys=True)
    return Need("dataset", path, revision, config.get("dataset_name"), options, asked=f"task {name}")


def _files_not_here(name: str, config: dict[str, Any]) -> Iterator[str]:
    path, arguments = _dataset(config)
    if path is None:
        return
    if _is_kind(path):
        folder = Path(arguments.get("data_dir") or "").expanduser()
        for file in data_files(arguments):
            first, last = file.partition("::")[0].partition("://")[0], address(file).removeprefix("file://")
            if first in KEEPING:
                yield (
                    f"The task {name} reads {file}, and datasets reads nothing through {first}: write {address(file)}, of "
                    "which it keeps a copy by itself."
                )
            elif not is_remote(file) and not glob.glob(str(folder / last), recursive=True):
                yield f"The task {name} reads {folder / last}, and there is no such file."
    elif _is_folder(path) and not Path(path).expanduser().is_dir() and "://" not in path:
        yield f"The task {name} reads the folder {path}, and there is none."


def _is_kind(path: str) -> bool:
    """Whether datasets reads files of a kind by this name: json, csv, parquet."""
    return path in _PACKAGED_DATASETS_MODULES


def _is_folder(path: str) -> bool:
    return Path(path).expanduser().is_dir() or path.startswith(("/", ".", "~")) or path.count("/") > 1


def _plain(conf: BenchmarkConf) -> str:
    return json.dumps(asdict(conf), sort_keys=True)


@cache
def _leaves(benchmark: str, cache_root: Path) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The tasks that are asked for, each with what its file says. Raises lm-eval's errors where one is wrong."""
    from hydratune.build.benchmark import asked_of_lm_eval, task_folder
    from hydratune.build.task_index import Tasks

    conf = BenchmarkConf(**json.loads(benchmark))
    names = asked_of_lm_eval(conf)
    if not names:
        return ()
    tasks = Tasks(task_folder(conf), names, cache_root)
    return tuple((leaf.name, _whole(leaf)) for name in tasks.expanded(names) for leaf in tasks.leaves(name))


def _whole(leaf: Any) -> dict[str, Any]:
    """What a task's file says; a class of Python has its dataset as attributes."""
    config: dict[str, Any] = leaf.config
    if "class" not in config:
        return config
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        written = load_yaml(leaf.entry.yaml_path, resolve_func=True)["class"]
    except (Exception, SystemExit) as error:  # of any kind: it imports the task's own code
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200].rstrip('.')}"
        raise ConfigError(f"The code of the task {leaf.name} can't be imported: {why}.") from None
    said = {"dataset_path": "DATASET_PATH", "dataset_name": "DATASET_NAME"}
    return {key: getattr(written, name, None) for key, name in said.items()} | config


def _dataset(config: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The path and the further arguments of load_dataset; None where code of the task's own makes the rows."""
    if config.get("custom_dataset"):
        return None, {}
    arguments = config.get("dataset_kwargs") or {}
    return config.get("dataset_path"), {k: v for k, v in arguments.items() if v is not None and k not in NO_CHOICE}
