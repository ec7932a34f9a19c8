"""Plots of losses, memory slots, class shares and calibration, as matplotlib figures.

Matplotlib is imported when the first plot is drawn. It never uses pyplot's global state, and it
writes equal plots as equal files.
"""

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
from pinmem_core.files import write_whole
from pinmem_core.label_space import CLASS_NAMES, COLOR_TABLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec
    from matplotlib.lines import Line2D

FORMATS = ("png", "svg", "pdf")
"""File formats of a plot, the suffixes of their files."""
INK, FAINT, GRID = "#212529", "#66707a", "#dee2e6"
"""Colours of text, of secondary text and of grid lines."""
# Colours of Okabe and Ito, which colour-blind people can distinguish.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of domains in a scatter plot."""
_DPI = 100
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.formatter.limits": (-3, 5),
    "axes.grid.axis": "y",
    "axes.labelcolor": FAINT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.dpi": _DPI,
    "font.size": 9.5,
    "grid.color": GRID,
    "legend.frameon": False,
    "savefig.dpi": "figure",
    "svg.hashsalt": "pinmem",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}
_METADATA = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
"""Metadata that would differ between dates and versions; None leaves it out."""
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
_READABLE_SLOTS = 24
"""Maximum number of slots whose cosines are printed."""
_MARGIN = 0.3
"""Margin of a figure in inches."""
_LIGHT = "#57606a", "#6aa9ef", "#b3400e", "#d0d7de"
_DARK = "#9aa6b2", "#1f62b5", "#ffa657", "#333b45"
"""Colours of text, bars, marks and lines; those of the report's style sheet."""
_CLASS_COLORS = {name: COLOR_TABLE[number] / 255 for number, name in enumerate(CLASS_NAMES)}


def plot_bytes(figure: "Figure", form: str = "png") -> bytes:
    """Return a figure as a file.

    Args:
        figure: Figure to render. Equal figures give equal bytes.
        form: "png", "svg" or "pdf".
    """
    data = BytesIO()
    with _style():
        figure.savefig(data, format=form, metadata=_METADATA[form])
    return data.getvalue()


def plot_format(path: Path) -> str:
    """Return the format of a plot at `path`: "png", "svg" or "pdf".

    Raises:
        ConfigError: The suffix is none of these.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
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
    write_whole(path, plot_bytes(figure, plot_format(path)))


def shortened(text: str, length: int) -> str:
    """Return `text` in characters of the font, with at most `length` of them."""
    # The font has Latin, Greek and Cyrillic letters.
    text = "".join(c if c.isprintable() and c < "\u0530" else "?" for c in text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def slot_name(number: int) -> str:
    """Return the class name of a slot by its trainId."""
    return CLASS_NAMES[number] if number < len(CLASS_NAMES) else f"class {number}"


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
    with _style():
        heights = [1.0] * (rows - 1) + [max(1.0, 0.1 * len(scores))]
        height = 1.2 + 2.4 * sum(heights) * bool(rows)
        figure = _figure(12.6, height, title, note)
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


def plot_cosines(slots: NDArray[np.float32], title: str) -> "Figure":
    """Plot the cosine similarities between memory slots.

    Args:
        slots: Slots by trainId, (K, D); a row of zeros is a class that was never seen.
        title: Title of the plot.
    """
    from matplotlib import colormaps

    lengths = np.linalg.norm(slots.astype(np.float64), axis=1)
    seen = lengths > 0
    unit = slots / np.where(seen, lengths, 1)[:, None]
    cosines = np.where(np.outer(seen, seen), unit @ unit.T, np.nan)
    count = len(slots)
    side = max(2.0, min(0.44 * count, 14.0))
    font = min(9.0, 60 * side / count)
    with _style():
        figure = _figure(max(7.2, side + 3.3), side + 2.3, title)
        axes = _axes(figure, 2.0, 0.5, side, side)
        colors = colormaps["RdBu_r"].with_extremes(bad=GRID)
        image = axes.imshow(cosines, colors, vmin=-1, vmax=1)
        names = [slot_name(number) for number in range(count)]
        axes.xaxis.tick_top()
        axes.set_xticks(range(count), names, rotation=45, ha="left", rotation_mode="anchor")
        rows = [n if s else f"{n} (never seen)" for n, s in zip(names, seen, strict=True)]
        axes.set_yticks(range(count), rows)
        axes.tick_params(length=0, labelsize=font)
        for label, is_seen in zip(axes.get_yticklabels(), seen, strict=True):
            label.set_color(INK if is_seen else FAINT)
        axes.spines[:].set_visible(False)
        if count <= _READABLE_SLOTS:
            for (row, column), cosine in np.ndenumerate(cosines):
                if isfinite(cosine):
                    color = "white" if abs(cosine) > 0.75 else INK
                    style = {"ha": "center", "va": "center", "size": 8, "color": color}
                    axes.text(column, row, _two_digits(cosine), **style)
        bar = figure.colorbar(image, cax=_axes(figure, 2.25 + side, 0.5, 0.15, side))
        bar.outline.set_visible(False)
        bar.set_ticks([-1, -0.5, 0, 0.5, 1])
        figure.text(
            _MARGIN / figure.get_figwidth(), 0.15 / figure.get_figheight(), _summary(cosines)
        )
    return figure


def plot_projection(
    written: Mapping[str, NDArray[np.float32]], slots: NDArray[np.float32], title: str
) -> "Figure":
    """Plot memory slots and class features of images, projected by PCA.

    A point is the feature of a class in an image. Its colour shows the class, its marker shows the
    domain (markers repeat after eight domains). Slots are large and labelled.

    Args:
        written: `Reading.written` of the images of each domain, (images, K, D), by domain; at least
            one domain.
        slots: Memory slots, (K, D); at least two rows must be nonzero. Rows of zeros, here and in
            `written`, are classes that were not seen.
        title: Title of the plot.
    """
    features = np.concatenate([*written.values()])
    domains = np.repeat(np.arange(len(written)), [len(images) for images in written.values()])
    images, classes = np.nonzero(features.any(axis=2))
    (seen,) = np.nonzero(slots.any(axis=1))
    shown = np.concatenate([features[images, classes], slots[seen]])
    plane = Plane.of(shown)
    across, up = plane.shares
    listed = sorted({*classes.tolist(), *seen.tolist()})
    width, height = 8.4, max(6.8, 0.21 * (len(written) + len(listed) + 2))
    note = f"across: {across:.0%} of the variance, up: {up:.0%}; both at the same scale"
    with _style():
        figure = _figure(width + 3, height + 1.1, title, note)
        axes = _axes(figure, _MARGIN, 0.2, width, height)
        # One unit is a point of 1/72 inch, so that the labels are placed in the same coordinates.
        room = np.array([[0, 0], [72 * width, 72 * height]])
        places = _fitted(plane.project(shown), room, edge=30)
        axes.set(xlim=room[:, 0], ylim=room[:, 1], xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
        points, centers = places[: len(images)], places[len(images) :]
        for number in range(len(written)):
            mine = domains[images] == number
            colors = COLOR_TABLE[classes[mine]] / 255
            style = {"marker": MARKERS[number % len(MARKERS)], "s": 45, "edgecolors": "white"}
            axes.scatter(*points[mine].T, c=colors, linewidths=0.7, **style)
        _draw_slots(axes, centers, seen, points, room)
        handles = [_marker("o", "white", INK, 10)]
        handles += [_marker(MARKERS[n % len(MARKERS)], FAINT) for n in range(len(written))]
        handles += [_marker("s", COLOR_TABLE[train_id] / 255) for train_id in listed]
        names = ["slot of the memory", *(shortened(name, 28) for name in written)]
        names += [slot_name(train_id) for train_id in listed]
        axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def plot_class_shares(
    pixels: Mapping[str, int],
    images: Mapping[str, int],
    samples: int,
    title: str,
    notes: Sequence[str] = (),
) -> "Figure":
    """Plot the share of each class in the labelled pixels, on a square-root scale.

    Args:
        pixels: Number of pixels by class name.
        images: Number of images in which the class occurs, by class name.
        samples: Number of all images.
        title: Title of the plot.
        notes: Lines below the title.
    """
    total = max(1, sum(pixels.values()))
    shares = np.array([count / total for count in pixels.values()])
    with _style():
        figure = _figure(10, 7.2, title, "\n".join(notes))
        axes = _axes(figure, 1.5, 0.5, 5.4, 5.3)
        axes.set_xscale("function", functions=(np.sqrt, np.square))
        axes.barh(range(len(shares)), shares, 0.65, color=[_CLASS_COLORS[name] for name in pixels])
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
                style = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "right"}
                axes.text(x, number, text, color=FAINT if number < 0 else INK, **style)
        for name, label in zip(pixels, axes.get_yticklabels(), strict=True):
            label.set_color(INK if pixels[name] else FAINT)
    return figure


def plot_reliability(
    confidence: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    counts: NDArray[np.int64],
    *,
    dark: bool = False,
) -> "Figure":
    """Plot the reliability diagram: accuracy by confidence, above the bins' pixel shares.

    Args:
        confidence: Mean confidence of each of B equal bins in 0..1, (B,); NaN for an empty bin.
        accuracy: Accuracy of each bin in 0..1, (B,); NaN for an empty bin.
        counts: Pixels in each bin, (B,); at least one bin has pixels.
        dark: Whether the plot is for a dark background. The background is transparent.
    """
    text, bars, marks, grid = _DARK if dark else _LIGHT
    used = np.flatnonzero(counts)
    width = 1 / len(counts)
    centers = (used + 0.5) * width
    with _style():
        figure = _figure(3.2, 3.9)
        figure.patch.set_alpha(0)
        axes = _axes(figure, 0.55, 1.1, 2.5, 2.7)
        axes.bar(centers, accuracy[used], 0.86 * width, color=bars)
        axes.hlines(confidence[used], centers - width / 2, centers + width / 2, color=marks)
        below = _axes(figure, 0.55, 0.55, 2.5, 0.45)
        below.bar(centers, counts[used] / counts.sum(), 0.86 * width, color=text)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1], ["0", "50", "100"])
        axes.set_ylabel("accuracy %", color=text)
        axes.grid(color=grid)
        below.set(xlim=(0, 1), yticks=[])
        below.set_xticks([0, 0.5, 1], ["0", "50", "100"])
        below.set_xlabel("confidence %", color=text)
        for part in (axes, below):
            part.patch.set_alpha(0)
            part.tick_params(length=0, labelcolor=text)
            part.spines[:].set_color(grid)
    return figure


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane of the first two principal components.

    Attributes:
        mean: Mean of the points, (D,).
        axes: Orthonormal axes, (2, D); the component of largest magnitude of each is positive.
        shares: Fraction of the variance along each axis, (2,).
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, points: NDArray[Any]) -> "Plane":
        """Fit the plane to `points`, (N, D), with N and D at least 2."""
        mean = points.mean(axis=0, dtype=np.float64)
        _, lengths, directions = np.linalg.svd(points - mean, full_matrices=False)
        axes = directions[:2]
        largest = np.take_along_axis(axes, abs(axes).argmax(axis=1, keepdims=True), axis=1)
        total = max((lengths**2).sum(), np.finfo(np.float64).tiny)
        return cls(mean, axes * np.sign(largest), lengths[:2] ** 2 / total)

    def project(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Return the coordinates (N, 2) of `points` (N, D) in the plane."""
        return (points - self.mean) @ self.axes.T


def place_labels(
    marks: NDArray[np.float64],
    radius: float,
    sizes: NDArray[np.float64],
    points: NDArray[np.float64],
    room: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return centres (N, 2) for the labels of N marks.

    Labels do not cover each other or a mark, if possible. Among the remaining positions, those that
    hide few points and lie close to the mark are preferred.

    Args:
        marks: Centres of the marks, (N, 2).
        radius: Radius of the marks.
        sizes: Width and height of each label, (N, 2).
        points: Points to keep visible, (M, 2).
        room: Lowest and highest corner of the label area, (2, 2).
    """
    angles = np.arange(16) * np.pi / 8 + np.pi / 2
    directions = np.stack([np.sin(angles), -np.cos(angles)], axis=1)
    distances = np.array([4.0, 12.0, 24.0, 40.0, 60.0, 84.0])
    taken = np.stack([marks - radius, marks + radius], axis=1)
    centers = np.empty_like(marks)
    for number, (mark, half) in enumerate(zip(marks, sizes / 2, strict=True)):
        reach = distances[:, None, None] + radius + half
        candidates = (mark + directions * reach).reshape(-1, 2)
        boxes = np.stack([candidates - half, candidates + half], axis=1)
        outside = ((boxes[:, 0] < room[0]) | (boxes[:, 1] > room[1])).any(axis=1)
        hidden = _overlaps(boxes, np.stack([points, points], axis=1)).sum(axis=1)
        clashes = _overlaps(boxes, taken).sum(axis=1)
        costs = 1e6 * (clashes + outside) + hidden + np.repeat(distances, len(angles)) / 20
        best = costs.argmin()
        centers[number] = candidates[best]
        taken = np.concatenate([taken, boxes[best : best + 1]])
    return centers


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of N boxes (N, 2, 2) overlap which of M others, (N, M)."""
    low = np.maximum(boxes[:, None, 0], others[None, :, 0])
    high = np.minimum(boxes[:, None, 1], others[None, :, 1])
    return np.all(low <= high, axis=2)


@contextmanager
def _style() -> Iterator[None]:
    """Set the style of all plots; a user's matplotlibrc has no effect."""
    import matplotlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of default settings that matplotlib deprecates
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
            yield


def _figure(width: float, height: float, title: str = "", note: str = "") -> "Figure":
    """Return a figure of a size in inches, with a title and a note above its axes."""
    from matplotlib.figure import Figure

    figure = Figure((width, height))
    left = _MARGIN / width
    figure.text(left, 1 - 0.2 / height, shortened(title, int(5.5 * width)), size=15, va="top")
    figure.text(left, 1 - 0.55 / height, note, color=FAINT, va="top", linespacing=1.4)
    return figure


def _axes(figure: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
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


def _fitted(
    places: NDArray[np.float64], room: NDArray[np.float64], edge: float
) -> NDArray[np.float64]:
    """Scale `places` (N, 2) to the largest size that fits, with equal scale on both axes."""
    low, high = places.min(axis=0), places.max(axis=0)
    scale = ((room[1] - 2 * edge) / np.maximum(high - low, 1e-9)).min()
    return room[1] / 2 + (places - (low + high) / 2) * scale


def _draw_slots(
    axes: "Axes",
    centers: NDArray[np.float64],
    train_ids: NDArray[np.intp],
    points: NDArray[np.float64],
    room: NDArray[np.float64],
) -> None:
    names = [slot_name(train_id) for train_id in train_ids.tolist()]
    sizes = np.array([(5.6 * len(name) + 8, 13) for name in names])  # in points
    labels = place_labels(centers, 8, sizes, points, room)
    for (x, y), (across, up) in zip(centers, labels, strict=True):
        axes.plot((x, across), (y, up), color=INK, linewidth=0.6, zorder=2)
    colors = COLOR_TABLE[train_ids] / 255
    axes.scatter(*centers.T, s=150, c=colors, edgecolors=INK, linewidths=1.6, zorder=3)
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
    for name, (x, y) in zip(names, labels, strict=True):
        axes.text(x, y, name, ha="center", va="center", size=9, bbox=box, zorder=4)


def _line(color: str) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linewidth=2.2)


def _marker(marker: str, color: Any, edge: str = "none", size: float = 7) -> "Line2D":
    from matplotlib.lines import Line2D

    style = {"markerfacecolor": color, "markeredgecolor": edge, "markersize": size}
    return Line2D([], [], linestyle="", marker=marker, **style)


def _two_digits(cosine: float) -> str:
    return f"{round(cosine, 2) + 0:.2f}"  # adding 0 turns -0 into 0


def _summary(cosines: NDArray[np.float64]) -> str:
    """Return a sentence on the cosines (K, K) between different slots; NaN entries are ignored."""
    count = len(cosines)
    seen = int(np.isfinite(cosines.diagonal()).sum())
    if seen < 2:
        return "Fewer than two classes have been seen: there is nothing to compare."
    mean = _two_digits(float(np.nanmean(cosines[~np.eye(count, dtype=bool)])))
    return f"{seen} of {count} classes were seen; the mean cosine of two of their slots is {mean}."


def _percent(share: float) -> str:
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.00005:
        return "<0.01%"
    return f"{share:.2%}" if share < 0.01 else f"{share:.1%}"
