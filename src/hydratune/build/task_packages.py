"""Python packages that lm-eval's tasks want beyond lm-eval's own, told without running their code."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from hydratune.build.task_index import OWN

TASKS = OWN.resolve()  # as functions of theirs are named
# module -> what pip installs it by, where that is another word
PIP = {"tinyBenchmarks": "git+https://github.com/felipemaiapolo/tinyBenchmarks"}


def missing(config: dict[str, Any]) -> set[str]:
    """What pip has to install before the functions can be imported that the configuration of a task names."""
    return {PIP.get(module, module) for file in _files(config) for module in _read(file)[0]}


def unfetched(config: dict[str, Any]) -> set[str]:
    """Files of nltk's that the task fetches where they are not here, which it can't offline."""
    wanted = {name for file in _files(config) for name in _read(file)[1]} if constants.HF_HUB_OFFLINE else set()
    if not wanted or not _there("nltk"):
        return set()
    import nltk

    def here(name: str) -> bool:
        try:
            return bool(nltk.data.find(name))
        except LookupError:
            return False

    return {name.rpartition("/")[2] for name in wanted if not here(name)}


def impossible(config: dict[str, Any]) -> set[tuple[str, str, str]]:
    """(package, version that the task demands, version that is there)."""
    return {one for file in _files(config) for one in _other_versions(file)}


def _files(value: Any) -> Iterator[Path]:
    """The modules of lm-eval's tasks that functions come from: as text, a function is FOLDER/module.name."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _files(inner)
    elif isinstance(value, str) and value.startswith(f"{TASKS}/"):
        folder, _, name = value.rpartition("/")
        file = Path(folder, *name.split(".")[:-1]).with_suffix(".py")
        if file.is_file():
            yield file


@cache
def _read(file: Path) -> tuple[frozenset[str], frozenset[str]]:
    """What `file`, and what it imports of lm-eval's tasks, wants: modules that are not installed, and files of nltk's."""
    lacking, data, files = set(), set(), [file]
    for one in files:  # grows as it is gone through
        data |= set(re.findall(r"""nltk\.data\.find\(["']([\w/]+)["']\)""", one.read_text(encoding="utf-8")))
        for module in _imported(_body(one), one):
            name = module.partition(".")[0]
            if module.startswith("lm_eval.tasks."):
                inner = TASKS.joinpath(*module.split(".")[2:]).with_suffix(".py")
                files += [inner] if inner.is_file() and inner not in files else []
            elif not (one.parent / f"{name}.py").is_file() and not _there(name):
                lacking.add(name)
    return frozenset(lacking), frozenset(data)


def _body(file: Path) -> list[ast.stmt]:
    try:
        return ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []


def _imported(body: Iterable[ast.stmt], file: Path) -> Iterator[str]:
    """The modules that importing a file can't do without, and those of lm-eval's tasks."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(("lm_eval.tasks", *file.relative_to(TASKS).parts[: -node.level])) if node.level else ""
            module = ".".join(filter(None, [package, node.module]))
            yield from [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Try) and any(
            isinstance(inner, ast.Raise) for handler in node.handlers for inner in handler.body
        ):
            yield from _imported(node.body, file)


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@cache
def _other_versions(file: Path) -> frozenset[tuple[str, str, str]]:
    """Of statements such as `assert version("antlr4-python3-runtime").startswith("4.11")`."""
    found = set()
    for statement in _body(file):
        for node in ast.walk(statement) if isinstance(statement, ast.Try | ast.Assert) else []:
            match node:
                case ast.Assert(
                    test=ast.Call(
                        func=ast.Attribute(
                            value=ast.Call(func=ast.Name(id="version"), args=[ast.Constant(value=str(package))]),
                            attr="startswith",
                        ),
                        args=[ast.Constant(value=str(wanted))],
                    )
                ):
                    try:
                        here = version(package)
                    except PackageNotFoundError:
                        continue
                    if not here.startswith(wanted):
                        found.add((package, wanted, here))
    return frozenset(found)
