"""A list of all settings of a run, made of their types, defaults and docstrings."""

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pinmem_core.config import Settings, TrainConfig

_TYPES = {str: "text", int: "integer", float: "number", bool: "true | false", NoneType: "none"}


class Setting(NamedTuple):
    """One setting.

    Attributes:
        key: Dotted key, as for `--set`.
        type: Type or choices, in words.
        default: Default as JSON data.
        meaning: Description.
    """

    key: str
    type: str
    default: Any
    meaning: str


def list_settings(section: type[Settings] = TrainConfig, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a section and of the sections inside it.

    Args:
        section: Class of the settings.
        prefix: Dotted key of the section, with a dot at its end.
    """
    defaults = section().model_dump(mode="json")
    for name, field in section.model_fields.items():
        kind = field.annotation
        if inner := next(filter(_is_section, (kind, *get_args(kind))), None):
            yield from list_settings(inner, f"{prefix}{name}.")
            continue
        default = defaults.get(name, getattr(field.default, "name", field.default))
        meaning = " ".join((field.description or "").split())
        yield Setting(f"{prefix}{name}", _in_words(kind), default, meaning)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def _in_words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_words(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join(map(_in_words, arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_in_words(arguments[0])}"
        return f"[{', '.join(map(_in_words, arguments))}]"
    return _TYPES.get(kind, "table")
