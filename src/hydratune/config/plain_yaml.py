"""YAML that holds plain data of a sensible size: what would not end, or would not fit, is refused before it is built."""

from functools import cache
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

DEEPEST = 50  # settings lie three or four levels deep
MOST = 10_000  # values that aliases may stand for


class Endless(yaml.MarkedYAMLError):
    """YAML that is refused for its size; `problem` is the sentence."""


def parsed(text: str) -> tuple[yaml.Node | None, Any]:
    """The nodes of a document, its merge keys resolved, and its plain data. Raises yaml.YAMLError."""
    refuse_endless(text)
    loader = _loader()(text)
    tree = loader.get_single_node()
    return tree, None if tree is None else loader.construct_document(tree)  # which resolves merge keys in the nodes


def refuse_endless(text: str) -> None:
    """Raises yaml.YAMLError for text that is not YAML, and where its depth or its aliases have no sensible end."""
    size: dict[str, int] = {}  # anchor -> the values that an alias of it stands for; 0 while it is open
    open_nodes: list[list[Any]] = []  # anchor and values so far of each mapping and list around
    aliased = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        count = 0
        if isinstance(event, yaml.AliasEvent):
            count = size.get(event.anchor, 1)  # one that stands for nothing is refused as the nodes are made
            aliased += count
            if not count:
                _refuse(event, f"*{event.anchor} stands inside &{event.anchor}, so it has no end: leave it out")
            if aliased > MOST:
                _refuse(event, f"its aliases stand for more than {MOST} values: write the few that are needed")
        elif isinstance(event, yaml.ScalarEvent):
            count = size[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([event.anchor, 1])
            size[event.anchor] = 0
            if len(open_nodes) > DEEPEST:
                _refuse(event, f"is nested more than {DEEPEST} levels deep, and settings lie a few levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, count = open_nodes.pop()
            size[anchor] = count
        if open_nodes:
            open_nodes[-1][1] += count


def plain_key(node: yaml.Node) -> Any:
    """A mapping's key as it stands in the plain data: 1 for 1, true for yes."""
    text = node.tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
    return node.value if text else _loader()("").construct_object(node)


@cache
def _loader() -> Any:
    return get_yaml_loader()  # OmegaConf's: a safe one, no key twice


def _refuse(event: yaml.Event, sentence: str) -> None:
    raise Endless(problem=sentence, problem_mark=event.start_mark)
