"""The settings of one YAML file, each with its line; what can't be read, in a sentence."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.settings import SWEPT, Setting, Sources, short


def tree_of(path: Path, found: Sources) -> yaml.Node | None:
    """The YAML nodes of a file; None, and a problem, where it is not YAML that holds plain data."""
    try:
        OmegaConf.load(path)  # refuses tags, and a key that stands twice
        tree = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if tree is None or isinstance(tree, yaml.MappingNode):
            return tree
        found.problems.append((f"{path}:{tree.start_mark.line + 1}", "holds no settings: write KEY: VALUE"))
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1 if error.problem_mark or error.context_mark else 1
        tag = re.search(r"constructor for the tag '(.+)'", error.problem or "")
        said = f"is not YAML of plain data: {error.problem or error}"
        if tag:
            name = tag[1].replace("tag:yaml.org,2002:", "!!")
            said = f"is not plain data: it has the tag {name}, which nothing reads; leave the tag out"
        found.problems.append((f"{path}:{line}", said))
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        found.problems.append((f"{path}:{line}", "is not UTF-8: save the file as UTF-8"))
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        found.problems.append((str(path), f"is not YAML of plain data: {' '.join(str(error).split())[:200]}"))
    return None


def entries(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), value


def saved_settings(path: Path, found: Sources | None = None) -> list[Setting]:
    """The settings of a run's config.yaml; what can't be read becomes a problem in `found`."""
    return list(settings_of(short(path.absolute()), "", "", found or Sources()))


def settings_of(path: Path, package: str, option: str, found: Sources) -> Iterator[Setting]:
    tree = tree_of(path, found)
    if tree is None:
        if not path.read_bytes().strip():
            return  # empty: it changes nothing
        found.spoilt.add(option.partition("=")[0])
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    late = next((n for n, line in enumerate(lines, 1) if re.match(r"\s*#\s*@package\b", line)), 0)
    if late and any(not re.match(r"\s*#\s*@|\s*$", line) for line in lines[: late - 1]):
        found.problems.append((f"{path}:{late}", "Hydra reads `# @package` at the top of a file only: move it there"))
    data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    yield from _leaves(tree, data, package, str(path), option, at_top=True)


def _leaves(node: yaml.Node, data: Any, prefix: str, path: str, option: str, at_top: bool = False) -> Iterator[Setting]:
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict) or not data:
        if prefix and not at_top:
            yield Setting(prefix, data, f"{path}:{node.start_mark.line + 1}", option)
        return
    for key_node, value in node.value:
        name = key_node.value
        if at_top and name == "defaults":
            continue
        key = f"{prefix}.{name}" if prefix else str(name)
        inner = data.get(name, data.get(_plain(name)))
        if isinstance(value, yaml.MappingNode) and inner and not key.startswith(SWEPT):
            yield from _leaves(value, inner, key, path, option)
        else:
            yield Setting(key, inner, f"{path}:{key_node.start_mark.line + 1}", option)


def _plain(name: str) -> Any:
    return yaml.safe_load(name)
