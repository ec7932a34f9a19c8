"""Load untrusted YAML with limits on size, depth and numbers.

A few lines of YAML can expand to gigabytes (aliases of aliases), to numbers of millions of digits,
or to a nesting that exhausts the stack. The limits are checked on the parser's events before a safe
loader builds anything. Duplicate keys are errors.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

MAX_NODES = 200_000
"""Maximum number of keys, values and entries, after alias expansion."""
MAX_DEPTH = 50
"""Maximum number of nested containers."""

_MAX_NUMBER_LENGTH = 32
_MERGE = "tag:yaml.org,2002:merge"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f]")

_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # faster


class YamlTextError(Exception):
    """Invalid YAML, or YAML that exceeds a limit.

    Args:
        reason: Cause of the error.
        line: Line of the error, counted from 1; None if unknown.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def load_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        YamlTextError: The text is not YAML, repeats a key, or exceeds a limit.
    """
    try:
        _check_limits(text)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        reason = problem if isinstance(error, _LimitError) else f"this is not YAML: {problem}"
        raise YamlTextError(reason, mark.line + 1 if mark else None) from None
    except (ValueError, LookupError, AttributeError, OverflowError):
        # PyYAML's constructors raise these for a value that does not match its tag.
        raise YamlTextError("this is not YAML: a value does not match its tag") from None


def compose_yaml(text: str) -> yaml.Node | None:
    """Return the nodes, with line numbers, of a text that `load_yaml` accepts."""
    return yaml.compose(text, _Loader)


class _LimitError(yaml.MarkedYAMLError):
    """A limit is exceeded."""


def _limit(problem: str, mark: Any) -> _LimitError:
    return _LimitError(problem=problem, problem_mark=mark)


@dataclass
class _Open:
    """An unfinished list or mapping."""

    anchor: str | None
    start: int  # number of nodes before it
    height: int = 0  # nested levels in it


def _check_limits(text: str) -> None:
    """Raise a YAML error if the expanded `text` exceeds a limit."""
    nodes = 0
    stack = [_Open(None, 0)]
    anchors: dict[str, tuple[int, int]] = {}  # nodes and levels of each
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
            if _CONTROL.search(event.value):
                raise _limit("a text holds a control character", event.start_mark)
            size, height = 1, 0
            if event.anchor:
                anchors[event.anchor] = 1, 0
        else:
            continue
        nodes += size
        stack[-1].height = max(stack[-1].height, height)
        if nodes > MAX_NODES:
            raise _limit(f"it holds more than {MAX_NODES:,} values", event.start_mark)
        if len(stack) + height > MAX_DEPTH:
            raise _limit(f"it is nested more than {MAX_DEPTH} levels deep", event.start_mark)


class _Loader(_Base):  # type: ignore[misc, valid-type]
    """A safe loader that rejects duplicate keys and long numbers."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # the base class rejects it
            key = _MERGE if key_node.tag == _MERGE else self.construct_object(key_node)
            if key in seen:
                problem = f"the key '{str(key_node.value)[:100]}' is given twice"
                raise _limit(problem, key_node.start_mark)
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping

    def number(self, node: yaml.ScalarNode) -> int | float:
        """Return the number of a scalar node."""
        if len(node.value) > _MAX_NUMBER_LENGTH:
            raise _limit("a number is too long", node.start_mark)
        kind = node.tag.rpartition(":")[2]
        construct = self.construct_yaml_int if kind == "int" else self.construct_yaml_float
        value: int | float = construct(node)
        return value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.number)
