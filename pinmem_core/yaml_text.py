"""Reading YAML that others wrote: limits are checked before anything is built from it.

A few lines of YAML can stand for gigabytes (aliases of aliases), for numbers of millions of digits,
or for a nesting that exhausts the stack. A first pass over the parser's events, which builds
nothing, counts what the text would become. Only then a safe loader builds it; it also refuses a key
that is given twice.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

MOST_NODES = 200_000
"""Keys, values and entries that a text may hold, those that aliases repeat included."""
DEEPEST = 50
"""Levels of nesting."""

_LONGEST_NUMBER = 32
_MERGE = "tag:yaml.org,2002:merge"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f]")

_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the faster one


class YamlTextError(Exception):
    """A text that is no YAML, or that breaks a limit.

    Args:
        reason: What is wrong.
        line: Where, counted from 1; None where that is unknown.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def load_yaml(text: str) -> Any:
    """Return the value that a YAML text stands for.

    Raises:
        YamlTextError: The text is no YAML, repeats a key, or breaks a limit.
    """
    try:
        _check_limits(text)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        reason = problem if isinstance(error, _LimitError) else f"this is no YAML: {problem}"
        raise YamlTextError(reason, mark.line + 1 if mark else None) from None
    except (ValueError, LookupError, AttributeError, OverflowError):
        # What PyYAML's constructors raise over a value that is not of its tag.
        raise YamlTextError("this is no YAML: a value is not of the kind that it says") from None


def compose_yaml(text: str) -> yaml.Node | None:
    """Return the nodes of a text that `load_yaml` has accepted; they know their lines."""
    return yaml.compose(text, _Loader)


class _LimitError(yaml.MarkedYAMLError):
    """A limit is broken."""


def _limit(problem: str, mark: Any) -> _LimitError:
    return _LimitError(problem=problem, problem_mark=mark)


@dataclass
class _Open:
    """A list or mapping that has not ended yet."""

    anchor: str | None
    start: int
    """Nodes before it."""
    height: int = 0
    """Levels of nesting in it."""


def _check_limits(text: str) -> None:
    """Raise a YAML error where loading `text` would take too much."""
    nodes = 0
    stack = [_Open(None, 0)]
    anchors: dict[str, tuple[int, int]] = {}  # how many nodes and levels each stands for
    for event in yaml.parse(text, _Base):
        if isinstance(event, yaml.CollectionEndEvent):
            closed = stack.pop()
            height = closed.height + 1
            stack[-1].height = max(stack[-1].height, height)
            if closed.anchor:
                anchors[closed.anchor] = nodes - closed.start, height
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise _limit(f"the alias '*{event.anchor}' is not defined before", event.start_mark)
            size, height = anchors[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(event.anchor, nodes))
            size, height = 1, 0
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(event)
            size, height = 1, 0
            if event.anchor:
                anchors[event.anchor] = 1, 0
        else:
            continue
        nodes += size
        stack[-1].height = max(stack[-1].height, height)
        if nodes > MOST_NODES:
            raise _limit(f"it holds more than {MOST_NODES:,} values", event.start_mark)
        if len(stack) + height > DEEPEST:
            raise _limit(f"it is nested more than {DEEPEST} levels deep", event.start_mark)


def _check_scalar(event: yaml.ScalarEvent) -> None:
    if _CONTROL.search(event.value):
        raise _limit("a text holds a control character", event.start_mark)


class _Loader(_Base):  # type: ignore[misc, valid-type]
    """A safe loader that refuses repeated keys and endless numbers."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # the parent refuses it
            key = _MERGE if key_node.tag == _MERGE else self.construct_object(key_node)
            if key in seen:
                problem = f"the key '{str(key_node.value)[:100]}' is given twice"
                raise _limit(problem, key_node.start_mark)
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping

    def number(self, node: yaml.ScalarNode) -> int | float:
        """Return the number that a scalar stands for."""
        if len(node.value) > _LONGEST_NUMBER:
            raise _limit("a number is too long", node.start_mark)
        kind = node.tag.rpartition(":")[2]
        construct = self.construct_yaml_int if kind == "int" else self.construct_yaml_float
        value: int | float = construct(node)
        return value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.number)
