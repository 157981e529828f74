"""The user's own tasks: what lm-eval would pass over in silence, or say late, with file and line."""

import importlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jinja2
import lm_eval.api.metrics
import lm_eval.filters  # noqa: F401  both register what they have
from lm_eval.api import registry
from lm_eval.api.samplers import SAMPLER_REGISTRY
from lm_eval.api.task import ALL_OUTPUT_TYPES
from lm_eval.config.group import AggMetricConfig
from lm_eval.config.task import FewshotConfig, TaskConfig
from lm_eval.tasks._index import TaskIndex
from lm_eval.tasks._yaml_loader import _load_module_with_cache

from hydratune.build.task_files import Unreadable, Whole, put_together
from hydratune.build.task_index import OF_GROUPS, Tasks
from hydratune.config.settings import short
from hydratune.config.values import suggestion

OF_TASKS = {field.name for field in fields(TaskConfig)} | {"group", "task_list"}
FEWSHOT = {field.name for field in fields(FewshotConfig)}
AGGREGATED = {field.name for field in fields(AggMetricConfig)}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
# key of a task -> what its value is
TYPES: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("dataset_kwargs", "generation_kwargs", "fewshot_config"), (dict, "a mapping")),
    **dict.fromkeys(("dataset_path", "dataset_name", *SPLITS), (str, "a text")),
    **dict.fromkeys(("num_fewshot", "repeats"), (int, "a whole number")),
}
TEMPLATES = (
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "doc_to_decontamination_query",
    "description",
    "gen_prefix",
)


def problems(folder: Path, asked: Iterable[str], tasks: Tasks, unknown: bool) -> tuple[list[str], set[str] | None]:
    """A sentence for each file that lm-eval can't read, and for each mistake in those that `asked` needs; all names.

    None for the names where a file can't be read, which may be called anything.

    `unknown`: some name of `asked` is nobody's, so that a file without a name may be meant.
    """
    found: list[str] = []
    wholes: dict[Path, Whole] = {}
    included: set[Path] = set()
    for path in TaskIndex._iter_yaml_files(folder.absolute()):
        try:
            wholes[path] = put_together(path, included, [])
        except Unreadable as error:
            found.append(str(error))
    unread = bool(found)
    named: dict[str, list[Whole]] = {}
    tags: dict[str, list[str]] = {}
    for path, whole in wholes.items():
        name = whole.data.get("task" if "class" in whole.data or "group" not in whole.data else "group")
        if isinstance(name, str):
            named.setdefault(name, []).append(whole)
            of = whole.data.get("tag")
            for tag in of if isinstance(of, list) else [of]:
                tags.setdefault(str(tag), []).append(name)
        elif unknown and path not in included:
            key = "group" if "group" in whole.data else "task"
            why = f", and a name is text, found {name!r}" if name is not None else ""
            found.append(f"{whole.at(key)}: the file names no {key}{why}: write {key}: NAME.")
    todo = [name for one in asked for name in [*named, *tags] if name == one or fnmatch(name, one)]
    for name in todo:  # grows as it is gone through
        members = list(tags.get(name, []))
        for whole in named.get(name, [])[:1]:  # lm-eval takes the first
            grouped = "group" in whole.data and "class" not in whole.data
            found += _of_group(whole, None if unread else named, tasks) if grouped else _of_task(whole)
            inner = whole.data.get("task") if grouped else []
            members += _members(inner)
            for other in named[name][1:]:
                at = other.at("group" if grouped else "task")
                found.append(f"{at}: {name} is in {short(whole.file.path)} too: give one of them another name.")
        todo += [one for one in members if one in {*named, *tags} and one not in todo]
    return list(dict.fromkeys(found)), None if unread else set(named)


def _name(item: Any) -> Any:
    """What an entry of a group's list is about."""
    return item.get("group", item.get("task")) if isinstance(item, dict) else item


def _members(items: Any) -> Iterator[str]:
    """The names in a group's list, and in those of the groups that are described there."""
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict) and "group" in item:
            yield from _members(item.get("task"))
        if isinstance(name := _name(item), str):
            yield name


def _of_group(whole: Whole, named: dict[str, Any] | None, tasks: Tasks) -> Iterator[str]:
    known = OF_GROUPS | OF_TASKS
    for key in [key for key in whole.data if key not in known]:
        yield f"{whole.at(key)}: a group has no key {key}{suggestion(str(key), known)}."
    yield from _functions(whole)
    yield from _of_members(whole, named, tasks, whole.data.get("task"), "task")
    metrics = whole.data.get("aggregate_metric_list")
    for number, one in enumerate(metrics if isinstance(metrics, list) else []):
        for key in [key for key in one if key not in AGGREGATED] if isinstance(one, dict) else []:
            at = whole.at("aggregate_metric_list", number, key)
            yield f"{at}: there is no key {key}{suggestion(str(key), AGGREGATED)}."


def _of_members(
    whole: Whole, named: dict[str, Any] | None, tasks: Tasks, members: Any, key: str, *way: str | int
) -> Iterator[str]:
    """Of the list `members` of a group, which lies at `way` in the file; groups may be described in it."""
    if not isinstance(members, list):
        yield f"{whole.at(key, *way)}: task of a group is a list of names, found {members!r:.60}."
    for number, item in enumerate(members if isinstance(members, list) else []):
        name, at = _name(item), whole.at(key, *way, number)
        if not isinstance(name, str):
            yield f"{at}: a member of a group is a name, or has task: NAME, found {item!r:.60}."
        elif isinstance(item, dict) and "group" in item and "task" in item:
            yield from _of_members(whole, named, tasks, item["task"], key, *way, number, "task")
        elif isinstance(item, dict) and {"group", "dataset_path", "custom_dataset"} & item.keys():
            continue  # described here, or another group
        elif named is not None and name not in tasks.task_index and name not in named:
            yield f"{at}: the group names {name!r}, which lm-eval does not know{suggestion(name, [*tasks.all_tasks, *named])}."


def _of_task(whole: Whole) -> Iterator[str]:
    data = whole.data
    yield from _functions(whole)
    tags = data.get("tag")
    if not all(isinstance(one, str) for one in (tags if isinstance(tags, list) else [tags] if tags else [])):
        yield f"{whole.at('tag')}: tag is a text or a list of texts, found {tags!r:.60}."
    if "class" in data:
        return  # it takes the keys that it likes
    for key in [key for key in data if key not in OF_TASKS]:
        yield f"{whole.at(key)}: a task has no key {key}{suggestion(str(key), [*OF_TASKS, 'include'])}."
    for key, (of, said) in TYPES.items():
        value = data.get(key)
        if value is not None and (not isinstance(value, of) or isinstance(value, bool)):
            yield f"{whole.at(key)}: {key} is {said}, found {value!r:.60}."
    if (kind := data.get("output_type", "generate_until")) not in ALL_OUTPUT_TYPES:
        near = suggestion(str(kind), ALL_OUTPUT_TYPES)
        yield f"{whole.at('output_type')}: output_type is one of {', '.join(ALL_OUTPUT_TYPES)}, found {kind!r}{near}."
    if not data.get("dataset_path") and not data.get("custom_dataset"):
        yield f"{whole.at('task')}: the task has no rows: write dataset_path, such as json with dataset_kwargs."
    if not data.get("test_split") and not data.get("validation_split"):
        yield f"{whole.at('task')}: the task has neither test_split nor validation_split, whose documents are asked."
    for key in TEMPLATES:
        try:
            if isinstance(data.get(key), str) and not list(whole.origin[key].functions(key)):
                jinja2.Environment().parse(data[key])
        except jinja2.TemplateSyntaxError as error:
            yield f"{whole.at(key)}: {key} is not a template: {error.message}."
    few = data.get("fewshot_config")
    for key in [key for key in few if key not in FEWSHOT] if isinstance(few, dict) else []:
        yield f"{whole.at('fewshot_config', key)}: fewshot_config has no key {key}{suggestion(str(key), FEWSHOT)}."
    sampler = few.get("sampler", "default") if isinstance(few, dict) else "default"
    if not _is_function(sampler) and (not isinstance(sampler, str) or sampler not in SAMPLER_REGISTRY):
        near = suggestion(str(sampler), SAMPLER_REGISTRY)
        yield f"{whole.at('fewshot_config', 'sampler')}: there is no sampler {sampler!r}{near}."
    yield from _metrics(whole)
    yield from _filters(whole)


def _metrics(whole: Whole) -> Iterator[str]:
    metrics = whole.data.get("metric_list")
    if metrics is not None and not isinstance(metrics, list):
        yield f"{whole.at('metric_list')}: metric_list is a list of mappings that begin with metric: NAME."
    for number, one in enumerate(metrics if isinstance(metrics, list) else []):
        if not isinstance(one, dict) or "metric" not in one:
            yield f"{whole.at('metric_list', number)}: an entry of metric_list begins with metric: NAME, found {one!r}."
            continue
        name, aggregation = str(one["metric"]), one.get("aggregation")
        given = _is_function(name) or one.get("hf_evaluate") or whole.data.get("process_results")
        if not given and name not in registry.metric_registry:
            near = suggestion(name, registry.metric_registry)
            yield (
                f"{whole.at('metric_list', number, 'metric')}: lm-eval has no metric {name!r}{near}; for one of the "
                "package evaluate write hf_evaluate: true below it."
            )
        elif aggregation is None and name not in registry.metric_agg_registry:
            yield f"{whole.at('metric_list', number, 'metric')}: {name} needs an aggregation, such as aggregation: mean."
        if (
            aggregation is not None
            and not _is_function(aggregation)
            and str(aggregation) not in registry.aggregation_registry
        ):
            near = suggestion(str(aggregation), registry.aggregation_registry)
            yield f"{whole.at('metric_list', number, 'aggregation')}: lm-eval has no aggregation {aggregation!r}{near}."


def _filters(whole: Whole) -> Iterator[str]:
    filters = whole.data.get("filter_list")
    if filters is not None and not isinstance(filters, list):
        yield f"{whole.at('filter_list')}: filter_list is a list of mappings, each with name and filter."
    for number, one in enumerate(filters if isinstance(filters, list) else []):
        steps = one.get("filter") if isinstance(one, dict) and "name" in one else None
        if not isinstance(steps, list) or not all(isinstance(step, dict) and "function" in step for step in steps):
            yield (
                f"{whole.at('filter_list', number)}: an entry of filter_list has name: NAME, and below filter: a list of "
                "function: NAME."
            )
            continue
        for place, step in enumerate(steps):
            name = str(step["function"])
            if not _is_function(name) and name not in registry.filter_registry:
                at = whole.at("filter_list", number, "filter", place, "function")
                yield f"{at}: lm-eval has no filter {name!r}{suggestion(name, registry.filter_registry)}."


def _is_function(value: Any) -> bool:
    """Of what was read: FOLDER/module.name."""
    return "/" in str(value)


def _functions(whole: Whole) -> Iterator[str]:
    for key, file in whole.origin.items():
        for line, spec in file.functions(key):
            if said := _not_there(file.path.parent, spec):
                yield f"{short(file.path)}, line {line}: !function {spec}: {said}."


def _not_there(folder: Path, spec: str) -> str | None:
    """Why a function can't be had, of which the module is imported: lm-eval looks beside the file first."""
    name, _, function = spec.rpartition(".")
    if not name:
        return "write FILE.FUNCTION, without .py"
    beside = (folder / f"{name.replace('.', '/')}.py").resolve()
    try:
        with patch.object(sys, "dont_write_bytecode", True):  # nothing is written before a run starts
            module = _load_module_with_cache(beside) if beside.is_file() else importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the user's own code does
        if isinstance(error, ModuleNotFoundError) and not beside.is_file() and name.startswith(str(error.name)):
            return f"there is neither {short(beside)} nor a module {name}"
        where = short(beside) if beside.is_file() else name
        said = " ".join(str(error).split())[:200].rstrip(".")
        return f"{where} can't be imported: {type(error).__name__}: {said}"
    if not hasattr(module, function):
        return f"{short(beside) if beside.is_file() else name} has no {function}{suggestion(function, dir(module))}"
    return None
