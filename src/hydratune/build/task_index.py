"""The names of lm-eval's own tasks, groups and tags, by a look at the heads of its 14,000 files.

`lm_eval.tasks.TaskManager()` parses each of them whole, which takes ten seconds.
"""

import fnmatch
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml
from xxhash import xxh3_128

from hydratune.config.schema import ConfigError

OWN = Path(lm_eval.tasks.__file__).parent
OF_GROUPS = {field.name for field in fields(GroupConfig)}
METHOD = 1  # raise it when the scan finds something else
Head = dict[str, Any]  # the keys of a file that decide its names, below
KEYS = ("task", "group", "class", "tag", "include")

# a key of those, its value, and the lines that may go on with it
HEAD = re.compile(rb'^(["\']?)(task|group|class|tag|include)\1[ \t]*:([^\n]*)\n?((?:(?:[ \t#-][^\n]*)?\n)*)', re.M)
# a line that begins with neither a key, nor a comment, nor what goes on with the line before: flow style, anchors, ...
ODD = re.compile(rb'^(?:---|(?![ \t\r\n#-]|(["\']?)\w+\1[ \t]*:(?:[ \t\r\n]|\Z))[^\n])', re.M)
SCALAR = re.compile(
    rb'[ \t]*(?:(["\'])([^"\'\\]+)\1|([A-Za-z][\w.()-]*(?:/[\w.()-]+)*|(?:\.\.?/)*[\w.-]+(?:/[\w.-]+)*))[ \t]*(?:[ \t]#.*)?\r?'
)
NOT_TEXT = {b"null", b"true", b"false", b"yes", b"no", b"on", b"off", b"y", b"n"}


@dataclass(frozen=True)
class Leaf:
    """A task that a name stands for."""

    name: str
    entry: Entry | None  # None where a group's file describes it
    overrides: Head

    @property
    def config(self) -> Head:
        """What its file says, functions as text."""
        return (load_yaml(self.entry.yaml_path, resolve_func=False) if self.entry else {}) | self.overrides

    def made(self) -> Any:
        """The task, as lm-eval makes it: with its rows loaded, and its first document rendered."""
        if self.entry is None:
            return ConfigurableTask(config=deepcopy(self.overrides))
        return TaskFactory().build(self.entry, overrides=deepcopy(self.overrides), registry={})


def is_pattern(name: Any) -> bool:
    return isinstance(name, str) and bool(set(name) & set("*?["))


class Tasks(TaskManager):
    """lm-eval's TaskManager of `folder` and of lm-eval's own tasks, which gives what TaskManager(folder) does.

    Of lm-eval's own only where `asked` needs them: for a name that is not in the folder, or a group, whose members may
    not be.
    """

    def __init__(
        self, folder: Path | None, asked: Iterable[str], cache_root: Path | None = None, keep: bool = False
    ) -> None:
        super().__init__(include_defaults=False)
        # lm-eval would take other names than texts, which its own sorting then can't
        theirs = {n: e for n, e in TaskIndex().build([folder] if folder else []).items() if isinstance(n, str)}
        entries = [theirs.get(name) for name in asked]
        own = {} if all(one and one.kind is not Kind.GROUP for one in entries) else own_entries(cache_root, keep)
        self._index: dict[str, Entry] = {**own, **theirs}
        of_kind = {kind: sorted(n for n, e in self._index.items() if e.kind is kind) for kind in Kind}
        self._all_tasks = sorted(self._index)
        self._all_subtasks = sorted([*of_kind[Kind.TASK], *of_kind[Kind.PY_TASK]])
        self._all_groups, self._all_tags = of_kind[Kind.GROUP], of_kind[Kind.TAG]

    def load(self, task_list: Any) -> Any:
        return super().load(self.expanded(task_list) if isinstance(task_list, list) else task_list)

    def expanded(self, asked: Iterable[Any]) -> list[Any]:
        """With each pattern, such as arc_*, replaced by what it matches; whatever else is asked for stays."""
        found: list[Any] = []
        for one in asked:
            found += self._matching(one) if is_pattern(one) and one not in self._index else [one]
        return found

    def _matching(self, pattern: str) -> list[str]:
        """The names that match, without those whose tasks another of them has: lm-eval takes no task twice."""
        matching = fnmatch.filter(self._all_tasks, pattern)
        has = {name: {leaf.name for leaf in self.leaves(name)} for name in matching}
        taken: set[str] = set()
        for name in sorted(matching, key=lambda name: -len(has[name])):
            if has[name] <= taken:
                matching.remove(name)
            taken |= has[name]
        return matching

    def leaves(self, name: str, overrides: Head | None = None, within: tuple[str, ...] = ()) -> Iterator[Leaf]:
        """The tasks that lm-eval makes of a task's, tag's or group's name, unmade: no dataset, no code of theirs.

        Raises ConfigError for a group that contains itself.
        """
        entry, overrides = self._index[name], overrides or {}
        if name in within:
            raise ConfigError(f"The group {name} of lm-eval's tasks contains itself: leave it out of {within[-1]}.")
        if entry.kind is Kind.GROUP:
            config = load_yaml(entry.yaml_path, resolve_func=False)
            yield from self._members(config, name, overrides, (*within, name))
        elif entry.kind is Kind.TAG:
            yield from (Leaf(one, self._index[one], overrides) for one in sorted(entry.tags) if one in self._index)
        else:
            yield Leaf(overrides.get("task", name), entry, overrides)

    def _members(self, config: Head, group: str, overrides: Head, within: tuple[str, ...]) -> Iterator[Leaf]:
        """As lm-eval's TaskFactory goes through the list of a group."""
        overrides = {key: value for key, value in config.items() if key not in OF_GROUPS} | overrides
        members = config.get("task")
        for item in members if isinstance(members, list) else []:
            own = item if isinstance(item, dict) else {}
            if not isinstance(own.get("group", own.get("task", item)), str):
                raise ConfigError(
                    f"The group {group} of lm-eval's tasks has a member that is no task: lm-eval can't take it."
                )
            given: Head = overrides | own
            name: Any = own.get("task", item)
            if "group" in own and own["group"] in self._index:
                yield from self.leaves(own["group"], {k: v for k, v in given.items() if k != "group"}, within)
            elif "group" in own:
                yield from self._members(own, f"{group}::{own['group']}", overrides, within)
            elif name not in self._index:
                yield Leaf(f"{group}::{name}", None, given | {"task": f"{group}::{name}"})
            elif self._index[name].kind is Kind.GROUP:
                yield from self.leaves(name, given, within)
            else:
                for leaf in self.leaves(name):
                    said = {"task": leaf.name} | given
                    yield Leaf(said["task"], leaf.entry, said)


def own_entries(cache_root: Path | None, keep: bool = False) -> dict[str, Entry]:
    """lm-eval's own index. The heads are read from the cache where it has them, and put there where `keep` says so."""
    file = cache_root / "lm_eval_tasks" / f"{_state()}.json" if cache_root else None
    kept = _kept(file) if file else None
    heads = kept or _heads()
    if file and keep and not kept:
        with suppress(OSError):  # it is only made again
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_name(f".{file.name}.{os.getpid()}")
            new.write_text(json.dumps(heads))
            new.replace(file)
    index: dict[str, Entry] = {}
    for name, head in heads.items():
        with suppress(KeyError, TypeError, ValueError):  # names nothing: lm-eval passes over it
            TaskIndex.process_cfg(head, OWN / name, index)
    return index


def _state() -> str:
    """Changes with any of lm-eval's files, also with one that was edited where it is installed."""
    whole = xxh3_128(f"{METHOD}".encode())
    for folder, folders, files in os.walk(OWN):
        folders[:] = sorted(set(folders) - {"__pycache__"})  # which importing a task's code fills
        for name in sorted(files):
            with suppress(OSError):  # a link that leads nowhere, such as an editor leaves
                found = os.stat(f"{folder}/{name}")
                whole.update(f"{folder[len(str(OWN)) :]}/{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return whole.hexdigest()[:16]


def _kept(file: Path) -> dict[str, Head] | None:
    try:
        heads = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return heads if isinstance(heads, dict) and all(isinstance(head, dict) for head in heads.values()) else None


@cache
def _heads() -> dict[str, Head]:
    """File of lm-eval's -> what it and the files that it includes say under the keys of a head."""
    found: dict[str, Head] = {}
    for path in sorted(f"{folder}/{name}" for folder, _, files in os.walk(OWN) for name in files):
        if path.endswith(".yaml") and "/__pycache__/" not in path and "/.ipynb_checkpoints/" not in path:
            try:
                found[path[len(str(OWN)) + 1 :]] = _whole(path, set())
            except Exception:  # of any kind: lm-eval passes over the file too
                continue
    return found


def _whole(path: str, seen: set[str]) -> Head:
    """The head of a file with what it includes, as lm-eval's load_yaml puts them together."""
    if path in seen:
        raise ValueError(f"{path} includes itself")
    seen.add(path)
    head = _head(path)
    if "include" not in head:
        return head
    included, whole = head["include"], Head()
    for name in included if isinstance(included, list) else [included]:
        whole |= _whole(str(Path(path).parent / name), seen)
    whole |= head
    del whole["include"]
    return whole


@cache
def _head(path: str) -> Head:
    """The head of one file; one that is written in an uncommon way is parsed."""
    number = os.open(path, os.O_RDONLY)
    try:
        text = os.read(number, os.fstat(number).st_size)
    finally:
        os.close(number)
    odd, head = ODD.search(text), Head()
    for _, key, value, more in HEAD.findall(text) if not odd else []:
        head[key.decode()] = True if key == b"class" else _value(value, more)
    if "group" in head and "class" not in head:
        head.pop("task", None)  # its members, which decide no name
    if odd or None in head.values():
        parsed = load_yaml(path, resolve_func=False, recursive=False)
        head = {key: parsed[key] for key in KEYS if key in parsed}
    return head


def _value(value: bytes, more: bytes) -> str | list[str] | None:
    """The text or the list of texts that a key has; None where it is neither, as far as can be seen."""
    lines = [line for line in more.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    if value.strip() and not value.lstrip().startswith(b"#"):
        return None if lines else _scalar(value)
    items = [_scalar(line.lstrip()[1:]) for line in lines if re.match(rb"[ \t]*-[ \t]", line)]
    return [item for item in items if item] if len(items) == len(lines) and items and all(items) else None


def _scalar(text: bytes) -> str | None:
    match = SCALAR.fullmatch(text)
    if not match or (match[3] and match[3].lower() in NOT_TEXT) or (match[3] and not re.search(rb"[A-Za-z]", match[3])):
        return None
    return (match[2] or match[3]).decode()
