"""Plots of an evaluation: confusion, calibration, differences, and the slots of the memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pinmem_core.evaluation.metrics import ConfusionMatrix
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.plots import (
    DARK,
    INK,
    LIGHT,
    MARGIN,
    Theme,
    add_axes,
    new_figure,
    plot_style,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of domains in a scatter plot."""
_READABLE = 24
"""Maximum number of rows and columns of a matrix whose values are printed."""
_BARS, _MARKS = {LIGHT: "#6aa9ef", DARK: "#1f62b5"}, {LIGHT: "#b3400e", DARK: "#ffa657"}
"""Colours of a reliability diagram; those of the report's style sheet."""


def plot_confusion(
    matrix: ConfusionMatrix, title: str, note: str = "", space: LabelSpace = CITYSCAPES
) -> "Figure":
    """Plot the share of the pixels of each true class that is predicted as each class, in %.

    Rows are the true classes that occur; columns also have those that are only predicted.

    Args:
        matrix: Counts of at least one pixel.
        title: Title of the plot.
        note: Line below the title.
        space: Label space of the matrix.
    """
    rows, columns = matrix.classes
    shares = matrix.shares[np.ix_(rows, columns)]
    side = max(2.0, min(0.36 * len(columns), 14.0))
    height = side * len(rows) / len(columns)
    with plot_style():
        lines = f"{note}\nrows: true class, columns: predicted class, in % of the pixels of a row"
        figure = new_figure(max(7.2, side + 3.3), height + 2.2, title, lines)
        axes = add_axes(figure, 2.0, 0.3, side, height)
        axes.imshow(shares, "Blues", vmin=0, vmax=1, aspect="auto")
        names = [shortened(name, 24) for name in space.names]
        above, left = [names[column] for column in columns], [names[row] for row in rows]
        _name_cells(axes, above, left, min(9.0, 60 * side / len(columns)))
        if len(columns) <= _READABLE:
            texts = [[f"{100 * s:.0f}" if s >= 0.005 else "" for s in row] for row in shares]
            _print_cells(axes, texts, shares > 0.6)
    return figure


def plot_cosines(
    slots: NDArray[np.float32],
    title: str,
    space: LabelSpace = CITYSCAPES,
    *,
    theme: Theme = LIGHT,
) -> "Figure":
    """Plot the cosine similarities between memory slots.

    Args:
        slots: Slots by trainId, (K, D); a row of zeros is a class that was never seen.
        title: Title of the plot.
        space: Label space of the slots.
        theme: Colours of the plot; those of the cells stay.
    """
    from matplotlib import colormaps

    lengths = np.linalg.norm(slots.astype(np.float64), axis=1)
    seen = lengths > 0
    unit = slots / np.where(seen, lengths, 1)[:, None]
    cosines = np.where(np.outer(seen, seen), unit @ unit.T, np.nan)
    count = len(slots)
    side = max(2.0, min(0.44 * count, 14.0))
    with plot_style(theme):
        figure = new_figure(max(7.2, side + 3.3), side + 2.3, title)
        axes = add_axes(figure, 2.0, 0.5, side, side)
        colors = colormaps["RdBu_r"].with_extremes(bad=theme.grid)
        image = axes.imshow(cosines, colors, vmin=-1, vmax=1)
        names = space.names
        rows = [n if s else f"{n} (never seen)" for n, s in zip(names, seen, strict=True)]
        _name_cells(axes, names, rows, min(9.0, 60 * side / count))
        for label, is_seen in zip(axes.get_yticklabels(), seen, strict=True):
            label.set_color(theme.ink if is_seen else theme.faint)
        if count <= _READABLE:
            texts = [[_two_digits(c) if isfinite(c) else "" for c in row] for row in cosines]
            _print_cells(axes, texts, abs(cosines) > 0.75)
        bar = figure.colorbar(image, cax=add_axes(figure, 2.25 + side, 0.5, 0.15, side))
        bar.outline.set_visible(False)
        bar.set_ticks([-1, -0.5, 0, 0.5, 1])
        figure.text(
            MARGIN / figure.get_figwidth(), 0.15 / figure.get_figheight(), _summary(cosines)
        )
    return figure


def plot_projection(
    written: Mapping[str, NDArray[np.float32]],
    slots: NDArray[np.float32],
    title: str,
    space: LabelSpace = CITYSCAPES,
    *,
    theme: Theme = LIGHT,
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
        space: Label space of the slots.
        theme: Colours of the plot; those of the classes stay.
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
    with plot_style(theme):
        figure = new_figure(width + 3, height + 1.1, title, note)
        axes = add_axes(figure, MARGIN, 0.2, width, height)
        # One unit is a point of 1/72 inch, so that the labels are placed in the same coordinates.
        room = np.array([[0, 0], [72 * width, 72 * height]])
        places = _fitted(plane.project(shown), room, edge=30)
        axes.set(xlim=room[:, 0], ylim=room[:, 1], xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
        points, centers = places[: len(images)], places[len(images) :]
        for number in range(len(written)):
            mine = domains[images] == number
            colors = space.color_table[classes[mine]] / 255
            x, y = points[mine].T
            marker = MARKERS[number % len(MARKERS)]
            axes.scatter(x, y, 45, colors, marker=marker, edgecolors="white", linewidths=0.7)
        _draw_slots(axes, centers, seen, points, room, space, theme)
        handles = [_marker("o", theme.paper, theme.ink, 10)]
        handles += [_marker(MARKERS[n % len(MARKERS)], theme.faint) for n in range(len(written))]
        handles += [_marker("s", space.color_table[k] / 255, theme.grid) for k in listed]
        names = ["slot of the memory", *(shortened(name, 28) for name in written)]
        names += [space.names[train_id] for train_id in listed]
        axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def plot_reliability(
    confidence: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    counts: NDArray[np.int64],
    *,
    theme: Theme = LIGHT,
) -> "Figure":
    """Plot the reliability diagram: accuracy by confidence, above the bins' pixel shares.

    Args:
        confidence: Mean confidence of each of B equal bins in 0..1, (B,); NaN for an empty bin.
        accuracy: Accuracy of each bin in 0..1, (B,); NaN for an empty bin.
        counts: Pixels in each bin, (B,); at least one bin has pixels.
        theme: Colours of the plot. The background is transparent.
    """
    used = np.flatnonzero(counts)
    width = 1 / len(counts)
    centers = (used + 0.5) * width
    with plot_style(theme):
        figure = new_figure(3.2, 3.9)
        figure.patch.set_alpha(0)
        axes = add_axes(figure, 0.55, 1.1, 2.5, 2.7)
        axes.bar(centers, accuracy[used], 0.86 * width, color=_BARS[theme])
        ends = centers - width / 2, centers + width / 2
        axes.hlines(confidence[used], *ends, color=_MARKS[theme])
        below = add_axes(figure, 0.55, 0.55, 2.5, 0.45)
        below.bar(centers, counts[used] / counts.sum(), 0.86 * width, color=theme.faint)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1], ["0", "50", "100"])
        axes.set_ylabel("accuracy %")
        axes.grid()
        below.set(xlim=(0, 1), yticks=[])
        below.set_xticks([0, 0.5, 1], ["0", "50", "100"])
        below.set_xlabel("confidence %")
        for part in (axes, below):
            part.patch.set_alpha(0)
            part.tick_params(length=0)
    return figure


@dataclass(frozen=True)
class DifferencePoint:
    """A difference of mIoU with its intervals, in -1..1.

    Attributes:
        name: What is compared.
        value: The difference.
        interval: Ends of the thick interval.
        wider: Ends of the thin interval; None for none.
        separated: Whether the difference is separated from 0; the point is filled.
    """

    name: str
    value: float
    interval: tuple[float, float]
    wider: tuple[float, float] | None
    separated: bool


def plot_differences(
    panels: Mapping[str, Sequence[DifferencePoint]],
    title: str,
    note: str = "",
    *,
    theme: Theme = LIGHT,
) -> "Figure":
    """Plot differences as points with intervals, in points of mIoU.

    A thin interval is cut off where it is more than three times as wide as all others, and one that
    spans -1..1, of a single image, always.

    Args:
        panels: At least one point for each panel, by its title.
        title: Title of the plot.
        note: Up to two lines below the title.
        theme: Colours of the plot.
    """
    heights = [0.28 * len(points) + 0.15 for points in panels.values()]
    width, height = 9.6, sum(heights) + 0.75 * len(panels) + 1.05
    longest = max(len(point.name) for of_panel in panels.values() for point in of_panel)
    left = min(3.4, 0.5 + 0.08 * longest)
    across = 9.3 - left
    points = [point for of_panel in panels.values() for point in of_panel]
    ends = (end for point in points for end in (*point.interval, point.value))
    limit = 100 * max((abs(end) for end in ends if abs(end) < 1), default=0.0)
    thin = 100 * max(abs(end) for point in points for end in point.wider or (0.0,))
    limit = 1.05 * max(min(thin, 3 * limit), limit, 0.1)
    with plot_style(theme):
        figure = new_figure(width, height, title, note)
        bottom = height - 1.05
        for (name, of_panel), tall in zip(panels.items(), heights, strict=True):
            bottom -= tall + 0.3
            axes = add_axes(figure, left, bottom, across, tall)
            axes.axvline(0, color=theme.faint, linewidth=0.8)
            for y, point in enumerate(of_panel):
                low, high = point.interval
                color = theme.accent if point.separated else theme.faint
                if point.wider:
                    axes.plot(
                        [100 * end for end in point.wider], [y, y], color=color, linewidth=0.9
                    )
                axes.plot([100 * low, 100 * high], [y, y], color=color, linewidth=3)
                fill = color if point.separated else theme.paper
                axes.plot(100 * point.value, y, "o", mfc=fill, mec=color, markersize=6)
            axes.set(xlim=(-limit, limit), ylim=(len(of_panel) - 0.4, -0.6))
            axes.set_yticks(range(len(of_panel)), [shortened(p.name, 44) for p in of_panel])
            axes.tick_params(length=0)
            axes.grid(axis="x")
            axes.set_title(shortened(name, 80), loc="left")
            bottom -= 0.45
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


def _name_cells(axes: "Axes", columns: Sequence[str], rows: Sequence[str], size: float) -> None:
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=size)
    axes.spines[:].set_visible(False)


def _print_cells(axes: "Axes", texts: Sequence[Sequence[str]], strong: NDArray[np.bool_]) -> None:
    """Print the texts of cells; white in those of a strong colour."""
    style: dict[str, Any] = {"ha": "center", "va": "center", "size": 8}
    for (row, column), is_strong in np.ndenumerate(strong):
        if text := texts[row][column]:
            axes.text(column, row, text, color="white" if is_strong else INK, **style)


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of N boxes (N, 2, 2) overlap which of M others, (N, M)."""
    low = np.maximum(boxes[:, None, 0], others[None, :, 0])
    high = np.minimum(boxes[:, None, 1], others[None, :, 1])
    return np.all(low <= high, axis=2)


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
    space: LabelSpace,
    theme: Theme,
) -> None:
    names = [space.names[train_id] for train_id in train_ids.tolist()]
    sizes = np.array([(5.6 * len(name) + 8, 13) for name in names])  # in points
    labels = place_labels(centers, 8, sizes, points, room)
    for (x, y), (across, up) in zip(centers, labels, strict=True):
        axes.plot((x, across), (y, up), color=theme.ink, linewidth=0.6, zorder=2)
    colors = space.color_table[train_ids] / 255
    x, y = centers.T
    axes.scatter(x, y, 150, colors, edgecolors=theme.ink, linewidths=1.6, zorder=3)
    box = {"boxstyle": "round,pad=0.15", "facecolor": theme.paper, "edgecolor": "none"}
    for name, (x, y) in zip(names, labels, strict=True):
        axes.text(x, y, name, ha="center", va="center", size=9, bbox=box, zorder=4)


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
