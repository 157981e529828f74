"""The settings of one YAML file, each with its line; what can't be read, in a sentence."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.plain_yaml import Endless, parsed, plain_key
from hydratune.config.settings import SWEPT, Setting, Sources, short
from hydratune.config.values import owner


def tree_of(path: Path, found: Sources) -> yaml.Node | None:
    """The YAML nodes of a file; None, and a problem, where it is not YAML that holds plain data."""
    return _read(path, found)[0]


def _read(path: Path, found: Sources) -> tuple[yaml.MappingNode | None, Any]:
    """The nodes of a file and its data; None twice, and a problem, where it is not YAML that holds plain data."""
    try:
        tree, data = parsed(path.read_text(encoding="utf-8"))
        if tree is None:
            return None, None
        if isinstance(tree, yaml.MappingNode):
            OmegaConf.create(data)  # refuses keys of odd types, and ${ without its end
            return tree, data
        found.problems.append((f"{path}:{tree.start_mark.line + 1}", "holds no settings: write KEY: VALUE"))
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1 if error.problem_mark or error.context_mark else 1
        tag = re.search(r"constructor for the tag '(.+)'", error.problem or "")
        said = f"is not YAML of plain data: {error.problem or error}"
        if tag:
            name = tag[1].replace("tag:yaml.org,2002:", "!!")
            said = f"is not plain data: it has the tag {name}, which nothing reads; leave the tag out"
        if isinstance(error, Endless):
            said = str(error.problem)
        found.problems.append((f"{path}:{line}", said))
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        found.problems.append((f"{path}:{line}", "is not UTF-8: save the file as UTF-8"))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        found.problems.append((str(path), f"is not YAML of plain data: {' '.join(str(error).split())[:200]}"))
    return None, None


def entries(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), value


def saved_settings(path: Path, found: Sources | None = None) -> list[Setting]:
    """The settings of a run's config.yaml; what can't be read becomes a problem in `found`."""
    return list(settings_of(short(path.absolute()), "", "", found or Sources()))


def settings_of(path: Path, package: str, option: str, found: Sources) -> Iterator[Setting]:
    before = len(found.problems)
    tree, data = _read(path, found)
    if tree is None:  # where it is just empty, it changes nothing
        if len(found.problems) > before:
            found.spoilt.add(option.partition("=")[0])
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    late = next((n for n, line in enumerate(lines, 1) if re.match(r"\s*#\s*@package\b", line)), 0)
    if late and any(not re.match(r"\s*#\s*@|\s*$", line) for line in lines[: late - 1]):
        found.problems.append((f"{path}:{late}", "Hydra reads `# @package` at the top of a file only: move it there"))
    yield from _leaves(tree, data, package, Setting("", None, str(path), option), found, at_top=True)


def _leaves(
    node: yaml.MappingNode, data: Any, prefix: str, file: Setting, found: Sources, at_top: bool = False
) -> Iterator[Setting]:
    """The settings below one mapping of a file; `file` has the place and the option of all."""
    last = {plain_key(key): (key, value) for key, value in node.value}  # what is merged in comes first, and gives way
    for name, (key_node, value) in last.items():
        if at_top and name == "defaults":
            continue
        place, text = f"{file.place}:{key_node.start_mark.line + 1}", str(key_node.value)
        key = f"{prefix}.{text}" if prefix else text
        free = owner(prefix) or f"{prefix}." == SWEPT  # a mapping of names that are the user's own
        if not free and (problem := _name_problem(text)):
            found.problems.append((place, problem))
            if text.strip("+~") != text or "@" in text:
                continue  # what is meant can't be told
        if isinstance(value, yaml.MappingNode) and data[name] and not key.startswith(SWEPT):
            yield from _leaves(value, data[name], key, file, found)
        elif isinstance(value, yaml.ScalarNode) and isinstance(data[name], int | float) and ":" in value.value:
            said = f"{text}: {value.value} is the number {data[name]} to YAML, which counts it to the base of 60"
            found.problems.append((place, f'{said}: write {text}: "{value.value}"'))
        else:
            yield replace(file, key=key, value=data[name], place=place)


def _name_problem(name: str) -> str | None:
    """What is wrong with the spelling of a key in a file: Hydra takes dots and signs on a command line only."""
    bare = name.lstrip("+~")
    if bare != name:
        return f"{name} is written with a sign of the command line: write {bare}"
    if "@" in name:
        return f"{name} is written with an @, which only a defaults list takes: write {name.partition('@')[0]}"
    group, dot, key = name.rpartition(".")
    if dot and group and key:
        return f"{name} is written with a dot: write {key}: below {group}"
    return None
