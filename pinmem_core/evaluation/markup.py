"""HTML elements of a report: scrollable tables, cells and inline pictures."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_JPEG_QUALITY = 82


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share in 0..1 as a percentage without the sign; "-" for None or NaN."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def cell(text: str, kind: str = "") -> str:
    """Return a table cell.

    Args:
        text: Content of the cell.
        kind: CSS classes of the cell.
    """
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def bar(value: float | None) -> str:
    """Return a table cell with a percentage in front of a bar of that length."""
    if value is None or np.isnan(value):
        return cell("-")
    return f'<td class="bar" style="--v:{value:.4f}">{percent(value)}</td>'


def table(caption: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return a table.

    Args:
        caption: Caption of the table.
        heads: Column headers.
        rows: Header and HTML cells of each row.
    """
    above = "".join(f'<th scope="col"><span>{escape(head)}</span></th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(head)}</th>{"".join(cells)}</tr>' for head, cells in rows
    )
    return (
        f'<p class="caption">{escape(caption)}</p>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{above}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def picture(pixels: NDArray[np.uint8], alt: str) -> str:
    """Return an inline `img` element of an RGB picture (H, W, 3)."""
    height, width = pixels.shape[:2]
    return (
        f'<img src="{data_uri(pixels)}" alt="{escape(alt)}" width="{width}" height="{height}" '
        'decoding="async">'
    )


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Return RGB pixels as a data URI in PNG or JPEG, whichever is smaller."""
    image, png, jpeg = Image.fromarray(pixels), BytesIO(), BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    form, data = min(("png", png), ("jpeg", jpeg), key=lambda f: len(f[1].getvalue()))
    return f"data:image/{form};base64,{b64encode(data.getvalue()).decode()}"
