"""The pictures of a memory, and the figures that they show."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from conftest import small_config
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from pinmem_core.data.transforms import normalize
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation import Target, memory_analysis
from pinmem_core.evaluation.memory_analysis import (
    Reading,
    frequent_classes,
    memory_pictures,
    read_memory,
    reading_sheet,
    reading_summary,
    weight_sheet,
)
from pinmem_core.evaluation.plots import Plane, place_labels, plot_projection
from pinmem_core.events import Progress
from pinmem_core.inference import Predictor, Protocol
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.models import Segmenter
from pinmem_core.plots import DARK, plot_bytes
from pinmem_core.visualize import color_ramp

STRIDE = 16


@dataclass
class Street:
    """A sample of noise with a label of the test's choice."""

    id: str
    truth: NDArray[np.uint8] = field(default_factory=lambda: _halves(0, 10))

    def read(self):
        rng = np.random.default_rng([*self.id.encode()])
        image = rng.integers(0, 256, (*self.truth.shape, 3), dtype=np.uint8)
        return image, self.truth


def _halves(left: int, right: int) -> NDArray[np.uint8]:
    truth = np.full((64, 96), left, np.uint8)
    truth[:, 48:] = right
    return truth


def _predictor(**settings) -> Predictor:
    torch.manual_seed(0)
    return Predictor(Segmenter(small_config(**settings).model), device="cpu")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return _predictor()


def _reading(weights, truth, prediction=None) -> Reading:
    truth = np.array(truth, np.uint8)
    image = np.full((*truth.shape, 3), 200, np.uint8)
    prediction = truth if prediction is None else np.array(prediction, np.uint8)
    return Reading("s", image, truth, prediction, np.array(weights, np.float32), np.zeros((19, 4)))


def _one_slot_each(slots, shape) -> NDArray[np.float32]:
    """Return weights of 19 slots at a row of positions that read one slot most, each another."""
    weights = np.full((19, 1, len(slots)), 0.05, np.float32)
    weights[slots, 0, range(len(slots))] = 0.1
    return weights


# What is read, and what would be written.


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_weights_are_the_softmax_of_cosines_divided_by_the_temperature(temperature):
    predictor = _predictor(model__memory__attention_temperature=temperature)
    street = Street("a")
    reading = read_memory(predictor, street)
    with torch.no_grad():
        image = torch.from_numpy(street.read()[0]).permute(2, 0, 1)[None]
        feature = predictor.segmenter.encode(normalize(image)).feature[0].numpy()
    query = feature / np.linalg.norm(feature, axis=0)
    cosines = np.einsum("dhw,kd->khw", query, predictor.segmenter.memory.slots.numpy())
    exponentials = np.exp(cosines / temperature)
    expected = exponentials / exponentials.sum(axis=0)
    assert reading.weights.shape == (19, 4, 6)
    np.testing.assert_allclose(reading.weights, expected, atol=1e-6)
    np.testing.assert_array_equal(reading.prediction, predictor.predict(street.read()[0]))
    np.testing.assert_array_equal(reading.truth, street.truth)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_weights_are_those_that_the_network_reads_by(temperature):
    """The value that reaches the network's fusion is the slots weighted by the shown weights."""
    predictor = _predictor(model__memory__attention_temperature=temperature)
    memory = predictor.segmenter.memory
    fused = []
    with memory.fuse.register_forward_pre_hook(lambda module, inputs: fused.append(inputs[0])):
        predictor.segmenter(
            normalize(torch.from_numpy(Street("a").read()[0]).permute(2, 0, 1)[None])
        )
    weights = torch.from_numpy(read_memory(predictor, Street("a")).weights)
    value = torch.einsum("khw,kd->dhw", weights, memory.slots)
    torch.testing.assert_close(fused[0][0, len(value) :], value, rtol=1e-5, atol=1e-6)


def test_an_image_writes_the_mean_of_u_over_a_class(predictor):
    street = Street("a", np.full((64, 96), 13, np.uint8))
    written = read_memory(predictor, street).written
    memory = predictor.segmenter.memory
    with torch.no_grad():
        image = torch.from_numpy(street.read()[0]).permute(2, 0, 1)[None]
        feature = predictor.segmenter.encode(normalize(image)).feature
        u = (feature + memory.write_map(feature)).relu()[0].flatten(1).numpy()
    mean = (u / np.linalg.norm(u, axis=0)).mean(axis=1)
    np.testing.assert_allclose(written[13], mean / np.linalg.norm(mean), atol=1e-6)
    assert not np.delete(written, 13, axis=0).any()


def test_a_class_smaller_than_a_position_writes_nothing(predictor):
    for height, is_written in ((STRIDE - 1, False), (STRIDE, True)):
        truth = _halves(0, 10)
        truth[:height, :STRIDE] = 7
        written = read_memory(predictor, Street("a", truth)).written
        assert bool(written[7].any()) == is_written and written[0].any()


def test_looking_changes_nothing(predictor):
    before = {name: v.clone() for name, v in predictor.segmenter.state_dict().items()}
    first, second = (read_memory(predictor, Street("a")) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    after = predictor.segmenter.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_large_images_are_reduced_after_they_are_predicted(predictor):
    reading = read_memory(predictor, Street("a"), max_pixels=32 * 48)
    assert reading.image.shape == (32, 48, 3) and reading.weights.shape == (19, 2, 3)
    assert reading.truth.shape == reading.prediction.shape == (32, 48)
    assert {*np.unique(reading.truth)} == {0, 10}
    whole = predictor.predict(Street("a").read()[0])
    assert {*np.unique(reading.prediction)} <= {*np.unique(whole)}


class TopHalf(Protocol):
    def view_of(self, image, label):
        return image[:32], label[:32]


def test_what_the_protocol_shows_is_what_is_looked_at(predictor):
    reading = read_memory(
        Predictor(predictor.segmenter, device="cpu", protocol=TopHalf()), Street("a")
    )
    np.testing.assert_array_equal(reading.image, Street("a").read()[0][:32])
    assert reading.prediction.shape == (32, 96) and reading.weights.shape == (19, 2, 6)


def test_a_network_without_memory_cannot_be_read_and_has_no_pictures():
    bare = _predictor(model__memory=None)
    with pytest.raises(ConfigError, match="no memory"):
        read_memory(bare, Street("a"))
    assert memory_pictures(bare, [Target("street", "val", (Street("a"),))]) == {}


def test_the_slot_that_is_read_most_is_compared_with_the_truth():
    reading = _reading(_one_slot_each([3, 8], (4, 8)), [[3, 3, 3, 3, 8, 3, 255, 255]] * 4)
    np.testing.assert_array_equal(reading.most_read, [[3, 3, 3, 3, 8, 8, 8, 8]] * 4)
    assert (reading.labelled, reading.right) == (24, 20)
    assert reading.weight_of(8)[0, [0, -1]].tolist() == pytest.approx([0.05, 0.1])


def test_a_sentence_tells_how_often_the_own_slot_is_read_most():
    truth = [[3, 3, 3, 3, 8, 3, 255, 255]] * 4
    some = _reading(_one_slot_each([3, 8], (4, 8)), truth, [[3, 3, 0, 0, 0, 0, 255, 3]] * 4)
    none = _reading(_one_slot_each([3, 8], (4, 8)), np.full((4, 8), 255))
    assert "In these 2 images, 83.3% of the labelled pixels read" in reading_summary([some, none])
    assert "prediction is right in 33.3%" in reading_summary([some, none])
    assert reading_summary([none]) == "No pixel of these images is labelled."


# Sheets with a row an image.


def _colors(picture: NDArray[np.uint8]) -> set[tuple[int, ...]]:
    packed = np.unique(picture.astype(np.uint32) @ (1 << 16, 1 << 8, 1)).tolist()
    return {(color >> 16, color >> 8 & 255, color & 255) for color in packed}


def test_a_sheet_shows_image_truth_prediction_and_slots_side_by_side():
    reading = _reading(_one_slot_each([8, 8], (20, 40)), np.full((20, 40), 3), np.full((20, 40), 5))
    sheet = reading_sheet([reading, reading])
    rows = [row for row in sheet if (row[140] == 200).all()]  # those that hold the image
    assert len(rows) > 200
    for row in rows:
        middles = [row[tile * 290 + 140].tolist() for tile in range(4)]
        assert middles == [[200] * 3, *CITYSCAPES.color_table[[3, 5, 8]].tolist()]
    key = sheet[-34:]
    assert {tuple(CITYSCAPES.color_table[k]) for k in (3, 5, 8)} <= _colors(key) and (
        key[:, 600:] == 255
    ).all()


def test_a_row_tells_how_often_the_own_slot_is_read_most(monkeypatch):
    shown = []
    heading = memory_analysis.heading
    monkeypatch.setattr(memory_analysis, "heading", lambda *a: shown.append(a[:2]) or heading(*a))
    right = _reading(_one_slot_each([3, 8], (4, 8)), [[3, 3, 3, 3, 8, 3, 255, 255]] * 4)
    reading_sheet([right, _reading(_one_slot_each([3, 8], (4, 8)), np.full((4, 8), 255))])
    assert shown == [
        ("s", "own slot read most: 83.3% of the labelled pixels"),
        ("s", "no pixel is labelled"),
    ]


def test_heat_maps_reach_from_their_own_smallest_to_their_own_largest_weight(monkeypatch):
    shown = []
    caption = memory_analysis.caption
    monkeypatch.setattr(memory_analysis, "caption", lambda *a: shown.append(a[0]) or caption(*a))
    weights = np.full((19, 1, 2), 0.05, np.float32)
    weights[3, 0], weights[8, 0] = (0.05, 0.06), (0.1, 0.02)
    sheet = weight_sheet([_reading(weights, np.full((20, 40), 255))], [3, 8])
    assert shown == [["s", "wall: 0.050 to 0.060", "vegetation: 0.020 to 0.100"]]
    low, high = [255, 255, 178], [189, 0, 38]
    ends = [sheet[90, x].tolist() for x in (390, 760, 780, 1150)]
    assert ends == [low, high, high, low]


def test_a_heat_map_of_equal_weights_is_of_one_colour():
    weights = np.full((19, 1, 2), 1 / 19, np.float32)
    sheet = weight_sheet([_reading(weights, np.full((20, 40), 255))], [3])
    assert _colors(sheet[5:200, 590:1150]) == {(255, 255, 178)}


def test_a_black_line_surrounds_the_class_in_the_truth():
    truth = np.full((60, 120), 255)
    truth[20:40, 40:80] = 3
    weights = np.full((19, 1, 2), 1 / 19, np.float32)
    black = (weight_sheet([_reading(weights, truth)], [3])[:285, 582:1150] < 90).all(axis=2)
    rows, columns = black.nonzero()
    assert rows.min() == pytest.approx(95, abs=6) and rows.max() == pytest.approx(190, abs=6)
    assert columns.min() == pytest.approx(188, abs=6)
    assert columns.max() == pytest.approx(380, abs=6)
    assert not black[130:150, 260:300].any()  # inside


def test_the_commonest_classes_of_all_images_come_first():
    readings = [
        _reading(np.zeros((19, 1, 1)), [[4, 4, 4, 255, 255, 255]]),
        _reading(np.zeros((19, 1, 1)), [[4, 9, 9, 9, 9, 9]]),
        _reading(np.zeros((19, 1, 1)), [[2, 2, 0, 0, 18, 9]]),
    ]
    assert frequent_classes(readings, 3) == [9, 4, 0]
    assert frequent_classes(readings, 9) == [9, 4, 0, 2, 18]


# The projection.


def test_the_plane_is_where_points_differ_most():
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.normal(size=(6, 3)))
    along = rng.normal(size=(500, 3)) * (3, 2, 0.1)
    points = along @ directions.T + 7
    plane = Plane.of(points)
    np.testing.assert_allclose(abs(plane.axes @ directions), np.eye(2, 3), atol=0.1)
    assert plane.shares == pytest.approx([9 / 13, 4 / 13], abs=0.05)
    assert (plane.axes[range(2), abs(plane.axes).argmax(axis=1)] > 0).all()
    places = plane.project(points)
    np.testing.assert_allclose(places.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(places.var(axis=0) / points.var(axis=0).sum(), plane.shares)


def test_the_plane_of_points_in_another_order_is_the_same():
    points = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    one, other = Plane.of(points), Plane.of(points[::-1])
    np.testing.assert_allclose(one.axes, other.axes, atol=1e-9)


def test_equal_points_have_a_plane():
    plane = Plane.of(np.ones((3, 4)))
    assert plane.shares.tolist() == [0, 0] and not plane.project(np.ones((3, 4))).any()


def _unit(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def _names(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def test_slots_and_domains_are_named_and_classes_never_seen_are_not():
    rng = np.random.default_rng(0)
    slots, features = _unit(rng.random((19, 8))), _unit(rng.random((3, 19, 8)))
    slots[16] = features[:, 16] = 0
    features[:, 5] = 0
    written = {"day": features[:2], "night": features[2:]}
    figure = plot_projection(written, slots, "a memory")
    names = _names(figure)
    seen = {*CITYSCAPES.names} - {"train"}
    assert {*names} > seen | {"day", "night", "a memory"} and "train" not in names
    assert all(names.count(name) == 2 for name in seen)  # at its slot, and in the legend
    assert plot_bytes(figure) == plot_bytes(plot_projection(written, slots, "a memory"))


def test_marks_lie_where_the_plane_has_them():
    slots = np.eye(19, 8, dtype=np.float32)
    slots[2:] = 0  # slots of road and sidewalk, one image with a car between them
    car = np.zeros((1, 19, 8), np.float32)
    car[0, 13, :2] = 0.5
    points, marks = plot_projection({"day": car}, slots, "").axes[0].collections
    (middle,) = points.get_offsets()
    road, sidewalk = marks.get_offsets()
    np.testing.assert_allclose(middle, (road + sidewalk) / 2, atol=1e-3)
    assert abs(road - sidewalk).max() > 500 and marks.get_sizes() > 2 * points.get_sizes()
    np.testing.assert_allclose(marks.get_facecolors()[:, :3] * 255, CITYSCAPES.color_table[:2])
    np.testing.assert_allclose(points.get_facecolors()[0, :3] * 255, CITYSCAPES.color_table[13])


@pytest.mark.parametrize("domains", [1, 20])
def test_any_number_of_domains_fits_into_the_figure(domains):
    rng = np.random.default_rng(0)
    written = {
        f"a-dataset:of-a-long-name-{n}": _unit(rng.random((1, 19, 8))) for n in range(domains)
    }
    figure = plot_projection(written, _unit(rng.random((19, 8))), "a title " * 40)
    FigureCanvasAgg(figure).draw()
    legend = figure.axes[0].get_legend().get_window_extent()
    width, height = figure.bbox.size
    assert legend.x0 > 0 and legend.y0 > 0 and legend.x1 < width and legend.y1 < height
    assert len(figure.axes[0].get_legend().get_texts()) == 1 + domains + 19


def test_a_domain_without_labels_adds_no_points():
    slots = _unit(np.random.default_rng(0).random((19, 8)))
    (points, _) = plot_projection({"dark": np.zeros((2, 19, 8))}, slots, "").axes[0].collections
    assert len(points.get_offsets()) == 0


def _boxes(centres, sizes) -> NDArray[np.float64]:
    return np.stack([centres - sizes / 2, centres + sizes / 2], axis=1)


@pytest.mark.parametrize("spread", [40, 150, 400])
def test_names_cover_neither_marks_nor_each_other(spread):
    rng = np.random.default_rng(spread)
    room = np.array([[0, 0], [900, 700]])
    marks = rng.normal((450, 350), spread / 3, (19, 2)).clip(20, 680)
    sizes = np.stack([rng.uniform(30, 90, 19), np.full(19, 17.0)], axis=1)
    boxes = _boxes(place_labels(marks, 11, sizes, rng.random((300, 2)) * 700, room), sizes)
    others = np.concatenate([boxes, _boxes(marks, np.full((19, 2), 20.0))])
    for number, (low, high) in enumerate(boxes):
        apart = (others[:, 1] <= low).any(axis=1) | (others[:, 0] >= high).any(axis=1)
        assert np.delete(apart, number).all()
        assert (low >= room[0]).all() and (high <= room[1]).all()


def test_a_name_lies_beside_its_mark_where_few_points_are():
    mark, size = np.array([[100.0, 100.0]]), np.array([[40.0, 16.0]])
    room, nothing = np.array([[0, 0], [200, 200]]), np.empty((0, 2))
    free = place_labels(mark, 10, size, nothing, room)
    assert abs(free - mark).max() == pytest.approx(34)  # half its width, the radius, and a gap
    crowd = free + np.array([[0.0, 0], [5, 0], [-5, 0]])
    low, high = _boxes(place_labels(mark, 10, size, crowd, room), size)[0]
    assert not ((crowd > low) & (crowd < high)).all(axis=1).any()
    low, high = _boxes(place_labels(mark + 90, 10, size, nothing, room), size)[0]
    assert (high <= 200).all()


def test_a_ramp_mixes_neighbouring_colours():
    colors = color_ramp(np.array([[0, 0.25], [0.5, 1]]), [(0, 0, 0), (100, 40, 20), (255, 0, 1)])
    assert colors.tolist() == [[[0, 0, 0], [50, 20, 10]], [[100, 40, 20], [255, 0, 1]]]


# All of them.


def test_a_memory_has_two_pictures_and_two_more_a_target(predictor):
    targets = [
        Target("day", "val", tuple(Street(f"d{n}", _halves(0, 10)) for n in range(5))),
        Target("night", "val", (Street("n", _halves(13, 255)),)),
    ]
    events = []
    found = memory_pictures(predictor, targets, samples_per_domain=2, on_event=events.append)
    assert [caption.split()[0] for caption in found] == [
        "Cosine",
        "Slots",
        "day:",
        "day:",
        "night:",
        "night:",
    ]
    drawn, sheets = [*found.values()][:2], [*found.values()][2:]
    assert all(isinstance(draw(theme=DARK), Figure) for draw in drawn)
    assert all(p.dtype == np.uint8 and p.ndim == 3 and p.shape[2] == 3 for p in sheets)
    task = "reading the memory for {}".format
    assert events == [
        Progress(task("day"), 1, 2), Progress(task("day"), 2, 2), Progress(task("night"), 1, 1)
    ]  # fmt: skip
    readings = [read_memory(predictor, targets[0].samples[n]) for n in (0, 4)]
    assert reading_summary(readings) in [*found][2]
    assert "A uniform read gives 0.053 to each slot." in [*found][3]


def test_a_target_without_labels_has_no_heat_maps(predictor):
    dark = Target("dark", "test", (Street("a", np.full((64, 96), 255, np.uint8)),))
    captions = [*memory_pictures(predictor, [dark])]
    assert len(captions) == 3 and "No pixel of these images is labelled." in captions[-1]


def test_a_memory_that_has_seen_nothing_is_shown_without_a_projection():
    blank = _predictor()
    blank.segmenter.memory.slots.zero_()
    captions = [*memory_pictures(blank, [Target("day", "val", (Street("a"),))])]
    assert not any("PCA" in caption for caption in captions) and len(captions) == 3
