"""The tasks of a benchmark: known, sound, and such as can run here, as far as can be told without their datasets."""

import difflib
import fnmatch
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydratune.config.load import cache_dir
from hydratune.config.schema import BenchmarkConf, Config, ConfigError
from hydratune.config.values import suggestion
from hydratune.run.console import quiet

SHOWN = 3  # tasks that a sentence names


def check_tasks(config: Config) -> None:
    """Raises ConfigError for names that nothing knows, files with an error, and tasks that could not run.

    Tasks whose rows are files here are made as evaluate makes them, and asked for the prompts of their documents.
    """
    from hydratune.build.benchmark import asked_of_lm_eval, task_folder
    from hydratune.build.task_checks import problems
    from hydratune.build.task_index import Tasks, is_pattern

    conf = config.benchmark
    folder = task_folder(conf)
    asked = asked_of_lm_eval(conf)
    tasks = Tasks(folder, asked, cache_dir(config))
    # nothing is expanded, nor looked into, before the files are known to be sound
    unknown = [
        n for n in asked if n not in tasks.task_index and not (is_pattern(n) and fnmatch.filter(tasks.all_tasks, n))
    ]
    wrong, named = problems(folder, asked, tasks, bool(unknown)) if folder else ([], set[str]())
    if named is not None:
        wrong += [_unknown(name, [*tasks.all_tasks, *conf.own_tasks]) for name in unknown if name not in named]
    if not wrong:
        wrong = [*_twice(conf, tasks, asked), *_unfit(conf, tasks, asked)]
    if not wrong:
        wrong = [*_objective(config, tasks, asked), *_of_rows(config, tasks, asked)]
    if wrong:
        raise ConfigError(wrong)


def _objective(config: Config, tasks: Any, asked: list[str]) -> Iterator[str]:
    """That what a sweep looks at is no score of these tasks: known only after training otherwise."""
    model, _, rest = (config.objective or "").partition("/")
    task, _, metric = rest.rpartition("/")
    if model not in ("base", "adapter", "merged"):
        return
    leaves = {leaf.name: leaf for name in tasks.expanded(dict.fromkeys(asked)) for leaf in tasks.leaves(name)}
    known = [*leaves, *tasks.expanded(dict.fromkeys(asked)), *config.benchmark.own_tasks]
    if task not in known:
        yield f"objective={config.objective} is about task {task!r}, which is none of benchmark.tasks{suggestion(task, known)}."
    elif task in leaves and (listed := leaves[task].config.get("metric_list")):
        names = [one["metric"] for one in listed if isinstance(one, dict) and isinstance(one.get("metric"), str)]
        if names and metric.partition(",")[0] not in names:
            yield f"objective={config.objective}: task {task} has no metric {metric!r}: it has {', '.join(names)}."


def _of_rows(config: Config, tasks: Any, asked: list[str]) -> list[str]:
    """What is wrong with rows that are here, and with what the tasks make of them."""
    from hydratune.build.needs import missing_files
    from hydratune.build.task_documents import document_problems

    missing = missing_files(config.benchmark, cache_dir(config))
    if missing:
        return missing
    with quiet(Path(os.devnull)):  # lm-eval's and the library datasets' own words
        return document_problems(config.benchmark, tasks, asked)


def _unknown(name: str, known: list[str]) -> str:
    from hydratune.build.task_index import is_pattern

    if is_pattern(name):
        return f"benchmark.tasks has the pattern {name!r}, which matches no task."
    if name.endswith((".yaml", ".yml")):
        return f"benchmark.tasks names the file {name!r}: set benchmark.include_path=FOLDER, and name the task itself."
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.8) or difflib.get_close_matches(name, known, n=1)
    meant = f" (did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}?)" if near else ""
    return f"benchmark.tasks names {name!r}, which lm-eval does not know{meant}."


def _twice(conf: BenchmarkConf, tasks: Any, asked: list[str]) -> Iterator[str]:
    """What lm-eval refuses late, or would do once."""
    for name, count in Counter(conf.tasks).items():
        if count > 1:
            yield f"benchmark.tasks names {name} {count} times: leave it there once."
    first: dict[str, str] = {}  # task -> the name that it came by
    both: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(tasks.expanded(dict.fromkeys(asked))):
        for leaf in dict.fromkeys(leaf.name for leaf in tasks.leaves(name)):
            if leaf in first:
                both.setdefault((first[leaf], name), []).append(leaf)
            else:
                first[leaf] = name
    for (one, other), leaves in both.items():
        yield f"benchmark.tasks asks for {_listed(leaves)} by {one} and by {other}: leave one of the two out."


def _unfit(conf: BenchmarkConf, tasks: Any, asked: list[str]) -> Iterator[str]:
    from hydratune.build.task_packages import impossible, missing, unfetched

    configs = {leaf.name: leaf.config for name in tasks.expanded(asked) for leaf in tasks.leaves(name)}

    def those(holds: Any) -> list[str]:
        return [name for name, config in configs.items() if holds(config)]

    needing: dict[frozenset[str], list[str]] = {}
    other: dict[tuple[str, str, str], list[str]] = {}
    for name, config in configs.items():
        if lacking := missing(config):
            needing.setdefault(frozenset(lacking), []).append(name)
        for one in impossible(config):
            other.setdefault(one, []).append(name)
    for packages, names in needing.items():
        said = " ".join(sorted(packages))
        yield f"Tasks of benchmark.tasks need further packages ({_listed(names)}): pip install {said}"
    for (package, wanted, here), names in other.items():
        yield (
            f"Tasks of benchmark.tasks run with {package} {wanted} alone, and {here} is installed ({_listed(names)}): leave "
            "them out, or evaluate merged/ by the lm_eval command in an environment of its own."
        )
    if files := sorted({one for config in configs.values() for one in unfetched(config)}):
        yield (
            f"Tasks of benchmark.tasks need files of nltk's, and the hub is offline ({_listed(those(unfetched))}): where there "
            f"is network type python -m nltk.downloader {' '.join(files)}, with NLTK_DATA set to a folder that is seen here."
        )
    if (unsafe := those(lambda config: config.get("unsafe_code"))) and not conf.confirm_run_unsafe_code:
        yield (
            f"Tasks of benchmark.tasks execute what the model writes ({_listed(unsafe)}): set "
            "benchmark.confirm_run_unsafe_code=true where that can do no harm, or leave them out."
        )
    if seen := those(lambda config: config.get("doc_to_image") or config.get("doc_to_audio")):
        yield f"Tasks of benchmark.tasks ask about images or sound ({_listed(seen)}): leave them out."
    few: dict[int, list[str]] = {}
    for name, config in configs.items():
        if (
            isinstance(written := (config.get("fewshot_config") or {}).get("samples"), list)
            and config.get("num_fewshot") != 0
        ):
            few.setdefault(len(written), []).append(name)
    for count, names in few.items():
        if (conf.num_fewshot or 0) > count:
            yield (
                f"benchmark.num_fewshot={conf.num_fewshot} is more than the {count} examples that tasks of benchmark.tasks "
                f"have ({_listed(names)}): set benchmark.num_fewshot={count}, or a smaller one."
            )
    yield from _without_effect(conf, list(configs.values()))
    if conf.num_fewshot and (leaking := those(_asks_its_examples)):
        yield (
            f"benchmark.num_fewshot={conf.num_fewshot} takes its examples from the documents that are asked, so that an answer "
            f"could stand in its own prompt ({_listed(leaking)}): name other rows under fewshot_split in the task's file, "
            "or set benchmark.num_fewshot=0."
        )


def _without_effect(conf: BenchmarkConf, configs: list[dict[str, Any]]) -> Iterator[str]:
    """Settings that none of the tasks reads; those of a class of Python may read any."""
    if any("class" in config for config in configs):
        return
    own = [conf.own_tasks[name] for name in conf.tasks if name in conf.own_tasks]
    kinds = [config.get("output_type", "generate_until") for config in configs] + [task.get("kind") for task in own]
    if "generate_until" not in kinds:
        if conf.repeats > 1:
            yield f"benchmark.repeats={conf.repeats} has no effect: none of the tasks generates; set benchmark.repeats=1."
        if conf.gen_kwargs:
            yield "benchmark.gen_kwargs has no effect: none of the tasks generates; set benchmark.gen_kwargs={}."
    if conf.num_fewshot and configs and not own and all(config.get("num_fewshot") == 0 for config in configs):
        yield (
            f"benchmark.num_fewshot={conf.num_fewshot} has no effect: the tasks' own files say num_fewshot: 0, which lm-eval "
            "keeps; set benchmark.num_fewshot=null."
        )


def _asks_its_examples(config: dict[str, Any]) -> bool:
    """Whether examples would come from the asked documents, without the asked one being left out of them."""
    if "class" in config or config.get("num_fewshot") == 0:
        return False
    own = config.get("fewshot_config")
    own = own if isinstance(own, dict) else {}
    test = config.get("test_split")
    named = own.get("split", config.get("fewshot_split"))
    if named is None and own.get("samples") is not None:
        return False
    source = named or config.get("training_split") or config.get("validation_split") or test
    return bool(source == (test or config.get("validation_split")) and not (named and named == test))


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more
