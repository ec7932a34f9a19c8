"""The pictures of a run, and what charts are made of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from pinmem_core.drawing import GRID, Chart, Curve, Scale, Sheet
from pinmem_core.label_space import CLASS_NAMES
from pinmem_core.training.plots import plot_losses, plot_memory
from pinmem_core.visualize import font, shortened

BLUE, RED = (0, 114, 178), (213, 94, 0)
SEEN = "classes were seen; the mean cosine of two of their slots is"
LONG = "a term of a plug-in that describes itself at length and in breadth"
NOTHING = "Fewer than two classes have been seen: there is nothing to compare."
TERMS = ("seg", "aux", "read", "div", "cls")


@dataclass(frozen=True)
class Text:
    """A text on a sheet and the box that it fills."""

    text: str
    box: tuple[float, float, float, float]


def _overlapping(texts: list[Text]) -> list[tuple[str, str]]:
    left, top, right, bottom = np.array([text.box for text in texts]).T
    beside = (left[:, None] < right) & (left < right[:, None])
    above = (top[:, None] < bottom) & (top < bottom[:, None])
    pairs = zip(*np.triu(beside & above, 1).nonzero(), strict=True)
    return [(texts[a].text, texts[b].text) for a, b in pairs]


@pytest.fixture
def texts(monkeypatch) -> list[Text]:
    """All level texts that are written while the test runs."""
    written = []
    write = Sheet.text

    def record(sheet, x, y, text, size=14, color=(0, 0, 0), anchor="lm", room=None):
        shown = shortened(text, 2 * size, 2 * (sheet.width - 64 if room is None else room))
        box = font(2 * size).getbbox(shown, anchor=anchor)
        box = x + box[0] / 2, y + box[1] / 2, x + box[2] / 2, y + box[3] / 2
        written.append(Text(shown, box))
        assert box[0] >= 0 and box[1] >= 0, f"{text} leaves the sheet"
        assert box[2] <= sheet.width and box[3] <= sheet.height, f"{text} leaves the sheet"
        return write(sheet, x, y, text, size, color, anchor, room)

    monkeypatch.setattr(Sheet, "text", record)
    return written


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


def _where(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return which pixels have a colour, but for what smoothing does to thin lines."""
    return (abs(picture.astype(int) - color) < 30).all(axis=2)


def _has(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> bool:
    return bool(_where(picture, color).any())


# Scales.


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.31, 2.9, "0 1 2 3"),
        (0.0, 1.0, "0.0 0.5 1.0"),
        (0.0, 0.8, "0.0 0.2 0.4 0.6 0.8"),
        (0.6, 1.4, "0.6 0.8 1.0 1.2 1.4"),
        (-0.3, 0.2, "-0.4 -0.2 0.0 0.2"),
        (1.2e-4, 3.8e-4, "1e-4 2e-4 3e-4 4e-4"),
        (0.0, 2.2e-5, "0 1e-5 2e-5 3e-5"),
        (300.0, 2900.0, "0 1,000 2,000 3,000"),
        (2.1e6, 4e6, "2.0e6 2.5e6 3.0e6 3.5e6 4.0e6"),
        (1e-4, 1e3, "1e-4 0.01 1 100"),
        (0.02, 30.0, "0.01 0.1 1 10 100"),
        (0.5, 0.5, "0.45 0.50 0.55"),
        (0.5, 0.5000001, "0.45 0.50 0.55 0.60"),
        (0.0, 0.0, "0.0 0.2 0.4 0.6"),
        (-2.0, -2.0, "-2.2 -2.1 -2.0 -1.9 -1.8"),
    ],
)
def test_ticks_are_round_and_short(low, high, labels):
    scale = Scale.around(low, high)
    assert " ".join(scale.labels) == labels
    assert -1e-9 < scale.share(low) <= scale.share(high) < 1 + 1e-9
    assert [float(s.replace(",", "")) for s in scale.labels] == pytest.approx(scale.ticks)


def test_every_range_has_a_handful_of_distinct_short_labels():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        low, high = sorted(10 ** rng.uniform(-4, 3, 2))
        scale = Scale.around(low, high)
        assert 2 <= len(set(scale.labels)) == len(scale.labels) <= 8
        assert max(map(len, scale.labels)) <= 9
        assert scale.low <= low * (1 + 1e-5) and high <= scale.high * (1 + 1e-5)
        assert scale.logarithmic == (high >= 1000 * low)


@pytest.mark.parametrize(
    ("last", "labels"),
    [
        (0, "0 1"),
        (1, "0 1"),
        (3, "0 1 2 3"),
        (10, "0 2 4 6 8 10"),
        (30_463, "0 10,000 20,000 30,000"),
    ],
)
def test_iterations_are_counted_in_whole_numbers_from_0(last, labels):
    assert " ".join(Scale.upto(last).labels) == labels


def test_shares_are_even_or_of_equal_factors():
    linear = Scale.around(0.0, 3.0)
    assert [linear.share(v) for v in (0, 1.5, 3)] == pytest.approx([0, 0.5, 1])
    logarithmic = Scale.around(1e-2, 1e2)
    assert [logarithmic.share(v) for v in (1e-2, 1, 1e2)] == pytest.approx([0, 0.5, 1])


# Curves.


def _chart(xs, ys, *, smooth=False) -> NDArray[np.uint8]:
    """Draw a blue curve of values in 0..1 into the inner 400 x 200 pixels of a sheet."""
    sheet = Sheet(500, 300)
    scales = Scale.upto(int(max(xs))), Scale.around(0.0, 1.0)
    chart = Chart(sheet, 50, 50, 450, 250, *scales)
    chart.draw([Curve(np.array(xs, float), np.array(ys, float), BLUE)], smooth)
    return sheet.finished()


def test_points_lie_where_their_values_are():
    picture = _chart([0, 5, 10], [0, 1, 0.5])
    for x, y in [(50, 250), (250, 50), (450, 150), (350, 100)]:
        assert _where(picture, BLUE)[y - 1 : y + 2, x - 1 : x + 2].any()
    assert not _has(picture[:, :45], BLUE) and not _has(picture[:40], BLUE)


def test_one_point_can_be_seen():
    picture = _chart([10], [0.5])
    assert 10 < _where(picture, BLUE).sum() < 60


def test_many_points_show_their_mean_and_faintly_themselves():
    zigzag = [0.1, 0.9] * 500
    rough, smooth = (_chart(range(1000), zigzag, smooth=smooth) for smooth in (False, True))
    assert np.ptp(_where(rough, BLUE).nonzero()[0]) > 150
    rows, _ = _where(smooth, BLUE).nonzero()
    assert np.ptp(rows) < 12 and rows.mean() == pytest.approx(150, abs=3)
    faint = smooth[90, 100:400].mean(axis=0)
    assert BLUE[0] + 40 < faint[0] < 230 and faint[2] > faint[0]
    assert np.array_equal(
        _chart(range(40), zigzag[:40]), _chart(range(40), zigzag[:40], smooth=True)
    )


def test_a_faint_curve_lets_the_grid_shine_through():
    white, grey = Sheet(40, 20), Sheet(40, 20)
    grey.rectangle(0, 0, 40, 20, GRID)
    for sheet in (white, grey):
        sheet.faint_line([(5, 10), (35, 10)], BLUE)
    over_white, over_grey = (sheet.finished()[10, 20].astype(int) for sheet in (white, grey))
    assert (over_grey < over_white).all() and (over_white < 255).all()


# Losses.


def test_each_term_has_a_panel_with_a_curve_a_phase(texts):
    picture = plot_losses(list(_run(3)), "my run")
    names = [text.text for text in texts]
    assert [name for name in names if name in ("total", *TERMS, "lr")] == ["total", *TERMS, "lr"]
    assert names[0] == "my run"
    assert {"inner (meta-train)", "outer (meta-test)", "over 30 iterations"} <= set(names)
    curves = picture[100:]  # below the legend
    assert _has(curves, BLUE) and _has(curves, RED)


def test_a_baseline_has_one_curve_and_no_more_panels_than_terms(texts):
    picture = plot_losses(list(_run(3, phases=("train",), terms=("seg", "aux"))), "")
    assert _has(picture[100:], BLUE) and not _has(picture, RED)
    names = {text.text for text in texts}
    assert {"train", "total", "seg", "aux"} <= names and not names & {"read", "div", "cls", "inner"}


def test_terms_of_other_methods_have_a_panel_and_other_figures_none(texts):
    lines = [{"iteration": 1, "inner/total": 1.0, "inner/style": 2.0, "speed/images": 7.0}]
    lines.append({"iteration": 1, "val/total": 0.5})
    plot_losses(lines, "")
    names = [text.text for text in texts]
    assert "style" in names and not {"images", "speed", "val"} & {*names}


def test_validation_is_shown_by_domain_from_best_to_worst(texts):
    lines = [*_run(4), {"iteration": 20, "val/gtav": 0.3, "val/synthia:day": 0.5}]
    without = plot_losses(lines[:-1], "")
    assert "validation" not in {text.text for text in texts}
    lines.append({"iteration": 40, "val/gtav": 0.4, "val/synthia:day": 0.612})
    assert not np.array_equal(plot_losses(lines, ""), without)
    names = [text.text for text in texts]
    assert names[-4:] == ["61.2", "synthia:day", "40.0", "gtav"]


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
        [*_run(5000, terms=("seg",)), *_many_domains(2)],
        [*_run(60, phases=[f"{n} {LONG}" for n in range(4)]), *_many_domains(14)],
        [{"iteration": n, "train/total": 1, f"train/{LONG}": 10.0 ** n, "lr": 1} for n in range(8)],
        [{"iteration": n, "train/total": 1, "train/read": 10.0 ** (n - 4)} for n in range(8)],
        [{"iteration": 1_234_567, "train/total": 1.0001234, "lr": 0.00998877}],
    ],
    ids=[
        "none", "bare", "1", "2-small", "3-large", "zero", "5000", "crowded", "term", "decades",
        "long",
    ],
)  # fmt: skip
def test_texts_neither_overlap_nor_leave_the_sheet(texts, lines):
    picture = plot_losses(lines, "a title " * 40)
    assert picture.dtype == np.uint8 and picture.shape[1:] == (1264, 3)
    assert _overlapping(texts) == []


def test_a_run_that_has_logged_nothing_has_no_panels(texts):
    plot_losses([], "empty")
    assert [text.text for text in texts] == ["empty", "over 0 iterations"]


def test_values_that_are_not_finite_are_left_out():
    lines = list(_run(4))
    broken = [line | {"inner/seg": value} for line in lines[:1] for value in (np.nan, np.inf)]
    gap = [{k: v for k, v in lines[0].items() if k != "inner/seg"}]
    for line in broken:
        assert np.array_equal(plot_losses([line, *lines[1:]], ""), plot_losses(gap + lines[1:], ""))


# The memory.


def _cell(picture: NDArray[np.uint8], row: int, column: int) -> tuple[int, ...]:
    """Return the colour of a cell, beside its value."""
    cells = {0: 222, 1: 174}
    return tuple(picture[cells[1] + 46 * row + 6, cells[0] + 46 * column + 6])


def test_cells_tell_the_cosines_of_slots(texts):
    slots = np.zeros((19, 3), np.float32)
    slots[:4] = [[2, 0, 0], [-1, 0, 0], [-0.01, 5, 0], [3, 3, 0]]
    picture = plot_memory(slots, "my memory")
    red, blue, neutral = (202, 0, 32), (5, 113, 176), (247, 247, 247)
    assert _cell(picture, 0, 0) == _cell(picture, 3, 3) == red
    assert _cell(picture, 0, 1) == _cell(picture, 1, 0) == blue
    assert _cell(picture, 0, 2) == neutral
    assert _cell(picture, 0, 18) == _cell(picture, 18, 0) == _cell(picture, 18, 18) == GRID
    names = [text.text for text in texts]
    assert [names.count(value) for value in ("1.00", "-1.00", "0.00", "0.71")] == [4, 2, 4, 4]
    assert names.count("-0.71") == 2 and "-0.00" not in names
    assert "my memory" in names


def test_classes_are_named_and_those_never_seen_marked(texts, monkeypatch):
    above = []
    monkeypatch.setattr(Sheet, "slanted", lambda _, x, y, text, *__: above.append((x, text)))
    slots = np.eye(19, dtype=np.float32)
    slots[16] = 0
    plot_memory(slots, "")
    assert tuple(text for _, text in sorted(above)) == CLASS_NAMES
    names = {text.text for text in texts}
    assert {*CLASS_NAMES} - names == {"train"} and "train (never seen)" in names


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
def test_a_sentence_tells_how_alike_slots_are(texts, slots, sentence):
    plot_memory(np.array(slots, np.float32), "")
    assert texts[-1].text == sentence


@pytest.mark.parametrize("count", [2, 19, 70, 150])
def test_a_memory_of_any_size_fits_on_its_sheet(texts, count):
    slots = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    slots[1] = 0
    picture = plot_memory(slots, "a title " * 40)
    assert max(picture.shape) < 2200
    assert _overlapping(texts) == []


def test_a_text_lies_as_its_anchor_says():
    sheet = Sheet(300, 40)
    width = sheet.text(150, 20, "some words", anchor="rm")
    _, columns = (sheet.finished() < 200).any(axis=2).nonzero()
    assert columns.max() < 151 and np.ptp(columns) == pytest.approx(width, abs=3)


def test_a_text_rises_from_its_place():
    sheet = Sheet(300, 300)
    sheet.slanted(100, 200, "rising")
    rows, columns = (sheet.finished() < 200).any(axis=2).nonzero()
    assert columns.min() >= 94 and rows.max() <= 206
    assert np.corrcoef(rows, columns)[0, 1] < -0.8
