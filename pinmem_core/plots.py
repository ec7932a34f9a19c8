"""Plots of losses, memory slots, class shares and calibration, with matplotlib.

Matplotlib is imported when the first plot is drawn. It never uses pyplot's global state, and it
writes equal plots as equal files.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import ConfigError
from pinmem_core.files import write_atomic
from pinmem_core.label_space import CITYSCAPES, LabelSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec
    from matplotlib.lines import Line2D

INK, FAINT, GRID = "#212529", "#66707a", "#dee2e6"
"""Colours of text, of secondary text and of grid lines."""
# Colours of Okabe and Ito, which colour-blind people can distinguish.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)


@dataclass(frozen=True)
class Theme:
    """Colours of a plot on a light or a dark background.

    Attributes:
        ink: Colour of text.
        faint: Colour of secondary text.
        grid: Colour of grid lines.
        paper: Colour of the background.
        accent: Colour of what stands out.
    """

    ink: str
    faint: str
    grid: str
    paper: str
    accent: str

    @property
    def style(self) -> dict[str, str]:
        """Settings of matplotlib."""
        return {
            "axes.edgecolor": self.grid,
            "axes.facecolor": self.paper,
            "axes.labelcolor": self.faint,
            "figure.facecolor": self.paper,
            "grid.color": self.grid,
            "text.color": self.ink,
            "xtick.color": self.faint,
            "ytick.color": self.faint,
        }


LIGHT = Theme(INK, FAINT, GRID, "#ffffff", COLORS[0])
DARK = Theme("#e6edf3", "#9aa6b2", "#333b45", "#14181d", "#7fb3f5")
"""The dark colours of the style sheet of reports."""
_STYLE = {
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.dpi": 100,
    "font.size": 9.5,
    "legend.frameon": False,
    "savefig.dpi": "figure",
    "svg.hashsalt": "pinmem",
    "text.parse_math": False,
}
_METADATA = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
"""Formats, with the metadata that would differ between dates and versions; None leaves it out."""
_MANY = 50
"""Number of points from which a curve shows its running mean."""
_FEW = 30
"""Maximum number of points of a curve with a marker at each point."""
_LOGARITHMIC = 1000
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
_TERMS = {
    "total": "weighted sum of the terms",
    "seg": "segmentation",
    "aux": "auxiliary head",
    "read": "features should match their slots",
    "div": "slots should differ",
    "cls": "slots should predict their class",
}
"""Loss terms in the order of their panels, with their descriptions."""
_PHASES = {"inner": "inner (meta-train)", "outer": "outer (meta-test)"}
MARGIN = 0.3
"""Margin of a figure in inches."""


def plot_bytes(figure: "Figure", form: str = "png") -> bytes:
    """Return a figure as a file.

    Args:
        figure: Figure to render. Equal plots give equal bytes.
        form: "png", "svg" or "pdf".
    """
    data = BytesIO()
    with plot_style():
        figure.savefig(data, format=form, metadata=_METADATA[form])
    return data.getvalue()


def plot_format(path: Path) -> str:
    """Return the format of a plot at `path`: "png", "svg" or "pdf".

    Raises:
        ConfigError: The suffix is none of these.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in _METADATA:
        raise ConfigError(
            f"a plot cannot be written to {path}: its format is unknown.",
            "End the name of the file with .png, .svg or .pdf.",
        )
    return form


def write_plot(path: Path, figure: "Figure") -> None:
    """Write a figure to `path` as PNG, SVG or PDF, by the suffix.

    Raises:
        ConfigError: The suffix names none of these formats.
        MachineError: The folder is not writable.
    """
    write_atomic(path, plot_bytes(figure, plot_format(path)))


def shortened(text: str, length: int) -> str:
    """Return `text` in characters of the font, with at most `length` of them."""
    # The font has Latin, Greek and Cyrillic letters.
    text = "".join(c if c.isprintable() and c < "\u0530" else "?" for c in text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def plot_losses(lines: Sequence[Mapping[str, float]], title: str) -> "Figure":
    """Plot losses, learning rate and validation mIoU of a run.

    Each loss term has a panel with one curve per phase. A curve with many points shows the running
    mean and, fainter, the points. Values that are not finite are omitted.

    Args:
        lines: Lines of a run's `metrics.jsonl`. Each has "iteration" and some of "PHASE/TERM"
            (every phase with a term "total"), "lr", and "val/DOMAIN" in 0..1.
        title: Title of the plot.
    """
    points = _points(lines)
    phases = [key.removesuffix("/total") for key in points if key.endswith("/total")]
    colors = dict(zip((p for p in phases if p != "val"), cycle(COLORS), strict=False))
    panels: dict[str, dict[str, NDArray[np.float64]]] = {term: {} for term in _TERMS}
    for key, curve in points.items():
        phase, _, term = key.partition("/")
        if phase in colors:
            panels.setdefault(term, {})[phase] = curve
    panels = {term: curves for term, curves in panels.items() if curves}
    averaged = any(len(c) >= _MANY for curves in panels.values() for c in curves.values())
    if "lr" in points:
        panels["lr"] = {"": points["lr"]}
    scores = {k.removeprefix("val/"): c for k, c in points.items() if k.startswith("val/")}
    place = len(panels) + (len(panels) % 3 == 2 and bool(scores))  # of the validation's two cells
    rows = -(-(place + 2 * bool(scores)) // 3)
    last = max((int(line["iteration"]) for line in lines), default=0)
    note = f"over {last:,} iteration{'' if last == 1 else 's'}"
    note += " · strong: running mean, faint: each logged iteration" if averaged else ""
    with plot_style():
        heights = [1.0] * (rows - 1) + [max(1.0, 0.1 * len(scores))]
        height = 1.2 + 2.4 * sum(heights) * bool(rows)
        figure = new_figure(12.6, height, title, note)
        if colors:
            names = [shortened(_PHASES.get(phase, phase), 28) for phase in colors]
            handles, top = [_line(color) for color in colors.values()], 1 - 0.7 / height
            figure.legend(handles, names, ncols=4, loc="upper left", bbox_to_anchor=(0.02, top))
        grid = _grid(figure, heights)
        for number, (term, curves) in enumerate(panels.items()):
            axes = figure.add_subplot(grid[divmod(number, 3)])
            _draw_curves(axes, curves, {**colors, "": INK}, last, smooth=term != "lr")
            _panel_title(axes, term, (_TERMS | {"lr": "learning rate"}).get(term, ""))
        if scores:
            axes = figure.add_subplot(grid[place // 3, place % 3 : place % 3 + 2])
            _draw_validation(axes, scores, last)
    return figure


def plot_class_iou(lines: Sequence[Mapping[str, float]], title: str) -> "Figure | None":
    """Plot the IoU of each class in each domain at the newest validation; None before the first.

    Args:
        lines: Lines of a run's `metrics.jsonl`; those of validations have "iou/DOMAIN/CLASS".
        title: Title of the plot.
    """
    validations = (line for line in reversed(lines) if any(key.startswith("iou/") for key in line))
    line = next(validations, None)
    if line is None:
        return None
    scores = {tuple(k.split("/", 2)[1:]): iou for k, iou in line.items() if k.startswith("iou/")}
    domains, classes = ([*dict.fromkeys(names[place] for names in scores)] for place in (0, 1))
    cells = np.array([[scores.get((d, c), np.nan) for d in domains] for c in classes])
    width, height = max(1.1 * len(domains), 3.0), 0.28 * len(classes)
    with plot_style():
        note = f"IoU % of the validation at iteration {int(line['iteration']):,}"
        figure = new_figure(width + 3.3, height + 2.2, title, note)
        axes = add_axes(figure, 2.0, 0.3, width, height)
        axes.imshow(cells, "Blues", vmin=0, vmax=1, aspect="auto")
        axes.xaxis.tick_top()
        names = [shortened(domain, 24) for domain in domains]
        axes.set_xticks(range(len(domains)), names, rotation=20, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), [shortened(name, 24) for name in classes])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for (row, column), iou in np.ndenumerate(cells):
            color = "white" if iou > 0.6 else INK
            text = f"{100 * iou:.1f}" if isfinite(iou) else "-"
            axes.text(column, row, text, ha="center", va="center", size=8, color=color)
    return figure


def plot_class_shares(
    pixels: Mapping[str, int],
    images: Mapping[str, int],
    samples: int,
    title: str,
    notes: Sequence[str] = (),
    space: LabelSpace = CITYSCAPES,
) -> "Figure":
    """Plot the share of each class in the labelled pixels, on a square-root scale.

    Args:
        pixels: Number of pixels by class name.
        images: Number of images in which the class occurs, by class name.
        samples: Number of all images.
        title: Title of the plot.
        notes: Lines below the title.
        space: Label space of the classes, for their colours.
    """
    total = max(1, sum(pixels.values()))
    shares = np.array([count / total for count in pixels.values()])
    with plot_style():
        more = 0.28 * (len(pixels) - len(CITYSCAPES))
        figure = new_figure(10, 7.2 + more, title, "\n".join(notes))
        axes = add_axes(figure, 1.5, 0.5, 5.4, 5.3 + more)
        axes.set_xscale("function", functions=(np.sqrt, np.square))
        colors = np.array([space.classes[name] for name in pixels]) / 255
        axes.barh(range(len(shares)), shares, 0.65, color=colors)
        axes.set(xlim=(0, shares.max() or 1), ylim=(len(shares) - 0.4, -0.6))
        ticks = [tick for tick in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1) if tick <= axes.get_xlim()[1]]
        axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
        axes.set_yticks(range(len(shares)), [*pixels])
        axes.tick_params(length=0)
        axes.grid(axis="x")
        axes.set_xlabel("share of the labelled pixels (square-root scale)")
        rows = [("share", "images that show the class")]
        rows += [
            (_percent(share), f"{images[name]:,}  ({_percent(images[name] / samples)})")
            for name, share in zip(pixels, shares, strict=True)
        ]
        for number, row in enumerate(rows, start=-1):
            for x, text in zip((1.12, 1.5), row, strict=True):
                color, place = FAINT if number < 0 else INK, axes.get_yaxis_transform()
                axes.text(x, number, text, color=color, transform=place, va="center", ha="right")
        for name, label in zip(pixels, axes.get_yticklabels(), strict=True):
            label.set_color(INK if pixels[name] else FAINT)
    return figure


@contextmanager
def plot_style(theme: Theme = LIGHT) -> Iterator[None]:
    """Set the style of all plots; a user's matplotlibrc has no effect."""
    logger = logging.getLogger("matplotlib")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)  # it reports on stderr that it builds its font cache
    import matplotlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of default settings that matplotlib deprecates
        usual = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
        settings: dict[Any, Any] = {
            **usual,
            **_STYLE,
            **theme.style,
        }  # pyplot alone needs a backend
        with matplotlib.rc_context(settings):
            yield


def new_figure(width: float, height: float, title: str = "", note: str = "") -> "Figure":
    """Return a figure of a size in inches, with a title and a note above its axes."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    figure = Figure((width, height))
    left = MARGIN / width
    figure.text(left, 1 - 0.2 / height, shortened(title, int(5.5 * width)), size=15, va="top")
    faint = rcParams["axes.labelcolor"]
    figure.text(left, 1 - 0.55 / height, note, color=faint, va="top", linespacing=1.4)
    return figure


def add_axes(figure: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    """Add axes at a position in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _grid(figure: "Figure", heights: Sequence[float]) -> "GridSpec":
    """Return cells in three columns, below the title and the legend."""
    height = figure.get_figheight()
    return figure.add_gridspec(
        len(heights), 3, left=0.055, right=0.975, bottom=0.35 / height,
        top=1 - 1.35 / height, wspace=0.22, hspace=0.5, height_ratios=heights,
    )  # fmt: skip


def _points(lines: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Return the iterations and finite values of each key, (N, 2)."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if isfinite(value):
                points.setdefault(key, []).append((line["iteration"], value))
    return {key: np.array(pairs, np.float64) for key, pairs in points.items()}


def _draw_curves(
    axes: "Axes",
    curves: Mapping[str, NDArray[np.float64]],
    colors: Mapping[str, str],
    last: int,
    *,
    smooth: bool = False,
) -> None:
    """Draw curves (N, 2) with their axes; `smooth` draws running means in front of the points."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = np.concatenate([curve[:, 1] for curve in curves.values()])
    if values.min() > 0 and values.max() >= _LOGARITHMIC * values.min():
        axes.set_yscale("log")
    if axes.get_yscale() == "linear" and 1e-4 <= abs(values).max() < 1e6:
        axes.ticklabel_format(style="plain", useOffset=False)
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid()
    axes.spines["left"].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=8.5)
    for name, curve in curves.items():
        x, y = curve.T
        marker = "o" if len(x) <= _FEW else ""
        style: dict[str, Any] = {"color": colors[name], "markersize": 3.5, "clip_on": False}
        if smooth and len(x) >= _MANY:
            axes.plot(x, y, linewidth=0.5, alpha=0.35, **style)
            y = _running_mean(y)
        axes.plot(x, y, linewidth=1.7, marker=marker, **style)


def _draw_validation(axes: "Axes", scores: Mapping[str, NDArray[np.float64]], last: int) -> None:
    """Draw the mIoU of each domain in %, with the names at the right, best first."""
    colors = dict(zip(scores, cycle(COLORS), strict=False))
    ranked = sorted(scores.items(), key=lambda item: -item[1][-1, 1])
    _draw_curves(axes, {name: curve * (1, 100) for name, curve in scores.items()}, colors, last)
    _panel_title(axes, "validation", "mIoU of each domain, in %")
    place = axes.get_position()
    axes.set_position((place.x0, place.y0, 0.55 * place.width, place.height))
    axes.legend(
        [_line(colors[name]) for name, _ in ranked],
        [f"{100 * curve[-1, 1]:.1f}   {shortened(name, 30)}" for name, curve in ranked],
        loc="upper left",
        bbox_to_anchor=(1.02, 1.05),
        labelspacing=0.3,
    )


def _panel_title(axes: "Axes", title: str, note: str) -> None:
    axes.set_title(shortened(title, 30))
    note += " (logarithmic)" if axes.get_yscale() == "log" else ""
    axes.set_title(note, loc="right", size=8.5, color=FAINT)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the running mean over about 4 % of the values."""
    window = np.ones(len(values) // (_MANY // 2) | 1)
    counts = np.convolve(np.ones_like(values), window, "same")
    return np.convolve(values, window, "same") / counts


def _line(color: str) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linewidth=2.2)


def _percent(share: float) -> str:
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.00005:
        return "<0.01%"
    return f"{share:.2%}" if share < 0.01 else f"{share:.1%}"
