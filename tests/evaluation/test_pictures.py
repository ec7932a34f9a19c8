"""The plots of a run, and how plots are written."""

import io
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import pytest
from conftest import small_config
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pinmem_core.errors import ConfigError
from pinmem_core.evaluation import ConfusionMatrix
from pinmem_core.evaluation.plots import plot_confusion, plot_cosines
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.models import Segmenter
from pinmem_core.plots import plot_bytes, plot_class_iou, plot_losses, shortened, write_plot
from pinmem_core.training.run_folder import RunFolder

BLUE, RED = "#0072b2", "#d55e00"
SEEN = "classes were seen; the mean cosine of two of their slots is"
LONG = "a term of a plug-in that describes itself at length and in breadth"
NOTHING = "Fewer than two classes have been seen: there is nothing to compare."
TERMS = ("seg", "aux", "read", "div", "cls")


def _texts(figure: Figure) -> list[Text]:
    """Return the texts that a figure shows."""
    FigureCanvasAgg(figure).draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    ticks = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    hidden = {
        label
        for axis in ticks
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if not axis.get_view_interval().min() - 1e-9
        <= tick.get_loc()
        <= axis.get_view_interval().max() + 1e-9
        for label in (tick.label1, tick.label2)
    }
    return [text for text in texts if text not in hidden]


def _names(figure: Figure) -> list[str]:
    return [text.get_text() for text in _texts(figure)]


def _require_legible(figure: Figure) -> None:
    """Fail where texts overlap, or leave the figure."""
    texts = [text for text in _texts(figure) if text.get_rotation() == 0]
    boxes = [text.get_window_extent() for text in texts]
    width, height = figure.bbox.size
    for text, box in zip(texts, boxes, strict=True):
        inside = box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2
        assert inside, f"{text.get_text()} leaves the figure"
    left, bottom, right, top = np.array([box.extents for box in boxes]).T
    wide = (left[:, None] < right - 1) & (left < right[:, None] - 1)
    high = (bottom[:, None] < top - 2) & (bottom < top[:, None] - 2)
    pairs = zip(*np.triu(wide & high, 1).nonzero(), strict=True)
    assert [(texts[a].get_text(), texts[b].get_text()) for a, b in pairs] == []


def _run(count: int, *, phases=("inner", "outer"), terms=TERMS, scale=1.0) -> Iterator[dict]:
    """Yield the lines of a run of `count` logged iterations."""
    rng = np.random.default_rng(0)
    for number in range(1, count + 1):
        values = {
            f"{phase}/{term}": scale * float(rng.uniform(1, 2))
            for phase in phases
            for term in (*terms, "total")
        }
        yield {"iteration": 10 * number, "lr": 0.01 * 0.999**number, "redrawn": 0} | values


# Files.


def test_a_plot_is_written_by_its_suffix_and_always_alike(tmp_path):
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")):
        written = []
        for name in ("a", "b"):
            path = tmp_path / f"{name}{suffix}"
            write_plot(path, plot_losses([{"iteration": 1, "a/total": 1.0}], "run"))
            written.append(path.read_bytes())
        assert written[0] == written[1] and written[0].startswith(start)
        assert not any(word in written[0] for word in (b"Date", b"Matplotlib v", b"Software"))
    with pytest.raises(ConfigError, match="format is unknown"):
        write_plot(tmp_path / "plot.bmp", plot_losses([], ""))
    assert not (tmp_path / "plot.bmp").exists()


def test_plots_leave_the_settings_of_the_user_alone_and_ignore_them():
    import matplotlib

    lines = [{"iteration": 1, "a/total": 1.0}]
    usual = plot_bytes(plot_losses(lines, "run"))
    with matplotlib.rc_context({"font.size": 30, "text.color": "red"}):
        assert plot_bytes(plot_losses(lines, "run")) == usual
        assert matplotlib.rcParams["font.size"] == 30


def test_texts_do_nothing_in_a_plot():
    names = _names(plot_losses([{"iteration": 1, "a$b_/total": 1.0, "val/$x$": 0.5}], "$\\frac{1"))
    assert "$\\frac{1" in names and "a$b_" in names and "50.0   $x$" in names
    assert shortened("Würzburg · day", 20) == "Würzburg · day" and shortened("漢\n", 5) == "??"
    assert shortened("a long name", 6) == "a lon…"


def test_matplotlib_is_imported_by_the_first_plot_without_pyplot():
    code = (
        "import sys; from pinmem_core.plots import plot_bytes, plot_losses;"
        "assert 'matplotlib' not in sys.modules; plot_bytes(plot_losses([], ''));"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _confused(space: LabelSpace, wrong: Mapping[str, str]) -> ConfusionMatrix:
    """Return a pixel of each class as itself, and three pixels of some classes as others."""
    matrix = ConfusionMatrix(np.eye(len(space), dtype=np.int64), np.zeros(len(space), np.int64))
    for truth, prediction in wrong.items():
        matrix.counts[space.names.index(truth), space.names.index(prediction)] += 3
    return matrix


@pytest.mark.plots
def test_a_run_folder_has_its_plots(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log(1, {"outer/total": 1.0})
    folder.log(1, {"val/toy": 0.5} | {f"iou/toy/{name}": 0.5 for name in CITYSCAPES.names})
    folder.draw(Segmenter(small_config().model))
    folder.draw_confusion("toy", 1, _confused(CITYSCAPES, {"road": "car"}), CITYSCAPES)
    for name in ("losses", "classes", "memory", "confusion/toy"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG" and min(picture.size) > 300


def test_the_iou_of_each_class_and_domain_is_that_of_the_newest_validation():
    lines = [
        {"iteration": 2, "iou/a/road": 0.9},
        {"iteration": 4, "iou/a/road": 0.5, "iou/b@val/road": 0.25, "iou/b@val/car": 1.0},
        {"iteration": 5, "lr": 0.1},
    ]
    figure = plot_class_iou(lines, "my run")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["50.0", "25.0", "-", "100.0"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b@val"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["road", "car"]
    assert plot_class_iou(lines[2:], "my run") is None


def test_a_confusion_matrix_has_shares_of_the_true_class():
    matrix = _confused(_classes(3), {"class 1": "class 0"})
    matrix.counts[2] = (0, 0, 0)
    matrix.counts[0, 2], matrix.missed[0] = 996, 3
    (axes,) = plot_confusion(matrix, "toy", "a note", _classes(3)).axes
    shares = axes.get_images()[0].get_array()
    assert np.allclose(shares, [[0.001, 0, 0.996], [0.75, 0.25, 0]])
    assert [text.get_text() for text in axes.texts] == ["100", "75", "25"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(_classes(3).names)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["class 0", "class 1"]


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (19, 70))])
def test_a_confusion_matrix_of_any_size_is_legible(count):
    space = _classes(count)
    figure = plot_confusion(_confused(space, {"class 1": "class 0"}), "a title " * 40, "", space)
    assert max(Image.open(io.BytesIO(plot_bytes(figure))).size) < 2200
    _require_legible(figure)


# Losses.


def _curves(figure: Figure, panel: str) -> list:
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == panel)
    return axes.get_lines()


def test_each_term_has_a_panel_with_a_curve_a_phase():
    figure = plot_losses([*_run(3)], "my run")
    panels = [axes.get_title(loc="left") for axes in figure.axes]
    assert panels == ["total", *TERMS, "lr"]
    names = _names(figure)
    assert {"my run", "inner (meta-train)", "outer (meta-test)", "over 30 iterations"} <= {*names}
    for term in TERMS:
        inner, outer = _curves(figure, term)
        assert (inner.get_color(), outer.get_color()) == (BLUE, RED)
        assert inner.get_xdata().tolist() == [10, 20, 30]
        assert inner.get_ydata().tolist() == [line[f"inner/{term}"] for line in _run(3)]


def test_a_baseline_has_one_curve_and_no_more_panels_than_terms():
    figure = plot_losses([*_run(3, phases=("train",), terms=("seg", "aux"))], "")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["total", "seg", "aux", "lr"]
    assert len(_curves(figure, "seg")) == 1 and "train" in _names(figure)


def test_terms_of_other_methods_have_a_panel_and_other_metrics_none():
    lines = [{"iteration": 1, "inner/total": 1.0, "inner/style": 2.0, "speed/images": 7.0}]
    lines.append({"iteration": 1, "val/total": 0.5})
    names = _names(plot_losses(lines, ""))
    assert "style" in names and not {"images", "speed", "val"} & {*names}


def test_validation_is_shown_by_domain_from_best_to_worst():
    lines = [*_run(4), {"iteration": 20, "val/gtav": 0.3, "val/synthia:day": 0.5}]
    assert "validation" not in _names(plot_losses(lines[:-1], ""))
    lines.append({"iteration": 40, "val/gtav": 0.4, "val/synthia:day": 0.612})
    figure = plot_losses(lines, "")
    (axes,) = (axes for axes in figure.axes if axes.get_legend())
    ranked = [text.get_text() for text in axes.get_legend().get_texts()]
    assert ranked == ["61.2   synthia:day", "40.0   gtav"]
    assert _curves(figure, "validation")[0].get_ydata() == pytest.approx([30, 40])


def test_many_points_show_their_mean_and_faintly_themselves():
    zigzag = [{"iteration": n, "train/total": (1.1, 1.9)[n % 2]} for n in range(1000)]
    faint, strong = _curves(plot_losses(zigzag, ""), "total")
    assert faint.get_alpha() < 0.5 and np.ptp(faint.get_ydata()) > 0.7
    assert np.ptp(strong.get_ydata()) < 0.1 and strong.get_ydata().mean() == pytest.approx(1.5)
    (few,) = _curves(plot_losses(zigzag[:40], ""), "total")
    assert few.get_ydata().tolist() == [line["train/total"] for line in zigzag[:40]]


def test_one_point_can_be_seen():
    (curve,) = _curves(plot_losses([{"iteration": 10, "train/total": 0.5}], ""), "total")
    assert curve.get_marker() == "o" and curve.get_markersize() > 2


def _many_domains(count: int) -> list[Mapping[str, float]]:
    names = [f"a-dataset-with-a-long-name:and-its-domain-{n}" for n in range(count)]
    return [{"iteration": i, **{f"val/{n}": 0.5 for n in names}} for i in (10, 20)]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"iteration": 5}],
        list(_run(1)),
        list(_run(2, scale=1e-4)),
        list(_run(3, scale=1e3)),
        list(_run(60, scale=0.0)),
        [*_run(500, terms=("seg",)), *_many_domains(2)],
        [*_run(60, phases=[f"{n} {LONG}" for n in range(4)]), *_many_domains(14)],
        [{"iteration": n, "train/total": 1, f"train/{LONG}": 10.0 ** n, "lr": 1} for n in range(8)],
        [{"iteration": n, "train/total": 1, "train/read": 10.0 ** (n - 4)} for n in range(8)],
        [{"iteration": 1_234_567, "train/total": 1.0001234, "lr": 0.00998877}],
        [{"iteration": n, "train/total": 2e-5 * n, "train/seg": 3e6 + n} for n in range(3)],
    ],
    ids=[
        "none", "bare", "1", "2-small", "3-large", "zero", "500", "crowded", "term", "decades",
        "long", "extreme",
    ],
)  # fmt: skip
def test_texts_neither_overlap_nor_leave_the_figure(lines):
    _require_legible(plot_losses(lines, "a title " * 40))


def test_labels_of_an_axis_are_few_short_and_distinct():
    rng = np.random.default_rng(0)
    ranges = [sorted(10 ** rng.uniform(-4, 3, 2)) for _ in range(5)]
    lines = [
        {"iteration": n, "a/total": 1.0, **{f"a/{i}": ends[n] for i, ends in enumerate(ranges)}}
        for n in range(2)
    ]
    figure = plot_losses(lines, "")
    FigureCanvasAgg(figure).draw()
    for number, (low, high) in enumerate(ranges):
        (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == str(number))
        bottom, top = axes.get_ylim()
        places, texts = axes.get_yticks(), [label.get_text() for label in axes.get_yticklabels()]
        shown = [t for y, t in zip(places, texts, strict=True) if bottom <= y <= top and t]
        assert 2 <= len(set(shown)) == len(shown) <= 10 and max(map(len, shown)) <= 9
        assert bottom <= low and high <= top
        assert (axes.get_yscale() == "log") == (high >= 1000 * low)


@pytest.mark.parametrize("last", [0, 1, 3, 10, 30_463])
def test_iterations_are_whole_numbers_from_0(last):
    figure = plot_losses([{"iteration": last, "a/total": 1.0}], "")
    FigureCanvasAgg(figure).draw()
    labels = [float(t.get_text().replace(",", "")) for t in figure.axes[0].get_xticklabels()]
    assert labels[0] == 0 and 2 <= len(labels) <= 7
    assert all(a < b and b == int(b) for a, b in pairwise(labels))


def test_a_run_that_has_logged_nothing_has_no_panels():
    assert _names(plot_losses([], "empty")) == ["empty", "over 0 iterations"]


def test_values_that_are_not_finite_are_left_out():
    lines = list(_run(3, terms=("seg",)))
    broken = [line | {"inner/seg": value} for line in lines[:1] for value in (np.nan, np.inf)]
    gap = [{k: v for k, v in lines[0].items() if k != "inner/seg"}]
    expected = plot_bytes(plot_losses(gap + lines[1:], ""))
    for line in broken:
        assert plot_bytes(plot_losses([line, *lines[1:]], "")) == expected


# The memory.


def _classes(count):
    return LabelSpace(name="own", classes=[f"class {number}" for number in range(count)])


def test_cells_show_the_cosines_of_slots():
    slots = np.zeros((19, 3), np.float32)
    slots[:4] = [[2, 0, 0], [-1, 0, 0], [-0.01, 5, 0], [3, 3, 0]]
    figure = plot_cosines(slots, "my memory")
    (image,) = figure.axes[0].get_images()
    cosines = image.get_array()
    assert cosines[0, 0] == pytest.approx(1) and cosines[0, 1] == pytest.approx(-1)
    assert cosines[0, 2] == pytest.approx(-0.002, abs=1e-6) and cosines[0, 3] == pytest.approx(
        0.5**0.5
    )
    assert cosines.mask[0, 18] and cosines.mask[18, 18] and not cosines.mask[:4, :4].any()
    assert image.get_clim() == (-1, 1)
    red, white, blue = (image.cmap(image.norm(c)) for c in (1, 0, -1))
    assert red[0] > red[2] and blue[2] > blue[0] and min(white) > 0.9
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert [cells.count(value) for value in ("1.00", "-1.00", "0.00", "0.71")] == [4, 2, 4, 4]
    assert cells.count("-0.71") == 2 and "-0.00" not in cells
    assert "my memory" in _names(figure)


def test_classes_are_named_and_those_never_seen_marked():
    slots = np.eye(19, dtype=np.float32)
    slots[16] = 0
    axes = plot_cosines(slots, "").axes[0]
    assert tuple(label.get_text() for label in axes.get_xticklabels()) == CITYSCAPES.names
    rows = {label.get_text() for label in axes.get_yticklabels()}
    assert {*CITYSCAPES.names} - rows == {"train"} and "train (never seen)" in rows


@pytest.mark.parametrize(
    ("slots", "sentence"),
    [
        ([[1, 0], [0, 1], [0, 0]], f"2 of 3 {SEEN} 0.00."),
        ([[1, 0], [3, 4], [0, 0]], f"2 of 3 {SEEN} 0.60."),
        ([[1, 0], [1, 0], [-1, 0]], f"3 of 3 {SEEN} -0.33."),
        ([[1, 0], [0, 0]], NOTHING),
        ([[0, 0], [0, 0]], NOTHING),
    ],
)
def test_a_sentence_summarizes_the_cosines(slots, sentence):
    assert sentence in _names(plot_cosines(np.array(slots, np.float32), "", _classes(len(slots))))


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (19, 70))])
def test_a_memory_of_any_size_is_legible(count):
    slots = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    slots[1] = 0
    figure = plot_cosines(slots, "a title " * 40, _classes(count))
    assert max(Image.open(io.BytesIO(plot_bytes(figure))).size) < 2200
    _require_legible(figure)
