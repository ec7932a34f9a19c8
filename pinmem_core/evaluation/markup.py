"""Pieces of a page: tables that scroll inside their own box, cells, pictures in the text itself."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_JPEG_QUALITY = 82


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share in 0..1 as a percentage without its sign, "-" where there is no value."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def cell(text: str, kind: str = "") -> str:
    """Return a cell of a table.

    Args:
        text: What it holds.
        kind: Names of its style.
    """
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def bar(value: float | None) -> str:
    """Return a cell with a share in percent, and behind it a bar as long."""
    if value is None or np.isnan(value):
        return cell("-")
    return f'<td class="bar" style="--v:{value:.4f}">{percent(value)}</td>'


def table(caption: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return a table.

    Args:
        caption: What it shows.
        heads: Texts above the columns.
        rows: The head and the cells of each row.
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
    """Return an (H, W, 3) RGB picture that needs no file beside the page."""
    height, width = pixels.shape[:2]
    return (
        f'<img src="{data_uri(pixels)}" alt="{escape(alt)}" width="{width}" height="{height}" '
        'decoding="async">'
    )


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Return RGB pixels as PNG, or as JPEG where that is smaller: for photos, not for drawings."""
    image, png, jpeg = Image.fromarray(pixels), BytesIO(), BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    form, data = min(("png", png), ("jpeg", jpeg), key=lambda f: len(f[1].getvalue()))
    return f"data:image/{form};base64,{b64encode(data.getvalue()).decode()}"
