"""Render jinja2 templates with everything escaped."""

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any


def percent(value: float | None) -> str:
    """Format a share in 0..1 as a percentage without the sign; "-" for None, NaN and infinity."""
    return "-" if value is None or not isfinite(value) else f"{100 * value:.1f}"


def points(share: float | None) -> str:
    """Format a difference in -1..1 in points with its sign; "" for None."""
    return "" if share is None else f"{round(100 * share, 1) + 0.0:+.1f}"  # never -0.0


def render(template: Path, escape: Callable[[object], str] | None = None, **values: Any) -> str:
    """Return the text of a template.

    Args:
        template: File of the template. It may include files of its folder, and it has the
            filters `percent` and `points`.
        escape: Function that escapes each value in the template, except `markupsafe.Markup`; None
            escapes HTML.
        values: Variables of the template; an unknown name in the template is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def escaped(value: object) -> object:
        return value if escape is None or isinstance(value, Markup) else Markup(escape(value))

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=escaped,
    )
    environment.filters |= {"percent": percent, "points": points}
    return environment.get_template(template.name).render(values)
