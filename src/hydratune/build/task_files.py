"""Task files of the user's, as lm-eval puts them together, and the line of each key."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks._yaml_loader import _make_loader

from hydratune.config.settings import short


class Unreadable(Exception):
    """What is wrong with a file that lm-eval would pass over."""


@dataclass(frozen=True)
class TaskFile:
    path: Path
    data: dict[str, Any]
    node: yaml.MappingNode

    def at(self, *way: str | int) -> str:
        """The place of a key, or of what lies in its value."""
        node: yaml.Node = self.node
        line = 1
        for step in way:
            if isinstance(node, yaml.MappingNode):
                found = [(key.start_mark.line, value) for key, value in node.value if key.value == step]
            else:
                found = [(value.start_mark.line, value) for value in node.value[step : step + 1]]  # type: ignore[operator]
            if not found:
                break
            line, node = found[-1][0] + 1, found[-1][1]
        return f"{short(self.path)}, line {line}"

    def functions(self, key: str) -> Iterator[tuple[int, str]]:
        """Line and text of each !function in the value of `key`."""
        nodes = [value for name, value in self.node.value if name.value == key]
        for node in nodes:  # grows as it is gone through
            if node.tag == "!function":
                yield node.start_mark.line + 1, node.value
            elif isinstance(node, yaml.MappingNode):
                nodes += [value for _, value in node.value]
            elif isinstance(node, yaml.SequenceNode):
                nodes += node.value


@dataclass(frozen=True)
class Whole:
    """A file with what it includes: each key, its value, and the file that says it."""

    file: TaskFile
    data: dict[str, Any]
    origin: dict[str, TaskFile]

    def at(self, key: str, *way: str | int) -> str:
        return self.origin[key].at(key, *way) if key in self.origin else self.file.at()


def put_together(path: Path, included: set[Path], seen: list[Path]) -> Whole:
    file = _read(path)
    data: dict[str, Any] = {}
    origin: dict[str, TaskFile] = {}
    seen.append(path)
    names = file.data.get("include", [])
    for number, name in enumerate(names if isinstance(names, list) else [names]):
        at = file.at("include", number) if isinstance(names, list) else file.at("include")
        inner = (path.parent / str(name)).resolve()
        if not inner.is_file():
            raise Unreadable(f"{at}: there is no file {name} to include.")
        if inner in [one.resolve() for one in seen]:
            raise Unreadable(f"{at}: {name} is included already, and a file may be once, and not by itself.")
        included.add(inner)
        whole = put_together(inner, included, seen)
        data |= {key: value for key, value in whole.data.items() if key != "task_list"}
        origin |= whole.origin
    own = {key: value for key, value in file.data.items() if key != "include"}
    return Whole(file, data | own, origin | dict.fromkeys(own, file))


@cache
def _read_at(path: Path, changed: int) -> TaskFile:
    try:
        loader = _make_loader(path.parent, resolve_funcs=False)(path.read_bytes())
        node = loader.get_single_node()
        data = loader.construct_document(node) if node else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(filter(None, [error.context, error.problem]))
        raise Unreadable(f"{short(path)}, line {mark.line + 1 if mark else 1}: is not YAML: {said}.") from None
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise Unreadable(f"{short(path)}, line 1: can't be read: {' '.join(str(error).split())[:200]}.") from None
    if not isinstance(data, dict):
        raise Unreadable(f"{short(path)}, line 1: holds no settings: write KEY: VALUE.")
    return TaskFile(path, data, node)


def _read(path: Path) -> TaskFile:
    return _read_at(path, path.stat().st_mtime_ns)
