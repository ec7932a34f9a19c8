"""Figures of prepared datasets, and the pictures that show them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import camvid_folder
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import RECORDS, PreparedDataset
from pinmem_core.data.preview import contact_sheet, plot_statistics
from pinmem_core.data.samples import Sample, evenly_spaced
from pinmem_core.data.statistics import Statistics, statistics
from pinmem_core.errors import DataError
from pinmem_core.images import read_image, write_png
from pinmem_core.label_files import read_label
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.plots import plot_bytes
from pinmem_core.visualize import GAP, shortened, side_by_side

CAMVID = get_card("camvid")


@pytest.fixture
def dataset(tmp_path) -> PreparedDataset:
    """Five samples of one size and two of another; only one holds a traffic sign."""
    source = camvid_folder(tmp_path / "source", {"0001TP": 5})
    camvid_folder(source, {"0016E5": 2}, size=(20, 50))
    for path in (source / "labels").iterdir():
        label = read_label(path)
        if path.name != "0016E5_00001.png":
            write_png(path, np.where(label == 6, 0, label).astype(np.uint8))
    return prepare(CAMVID, [source])


def test_class_figures_are_those_of_all_labels(dataset):
    result = statistics(dataset.samples, "camvid", images=1)
    labels = [read_label(sample.label) for sample in dataset.samples]
    for name in CITYSCAPES.names:
        pixels = [int((label == CITYSCAPES.train_ids[name]).sum()) for label in labels]
        assert result.class_pixels[name] == sum(pixels)
        assert result.class_images[name] == sum(count > 0 for count in pixels)
    assert result.class_images["traffic sign"] == 1
    assert result.class_images["train"] == result.class_pixels["train"] == 0
    assert result.class_pixels == dataset.summary["class_pixels"]


def test_only_the_samples_asked_for_count(dataset):
    chosen = [sample for sample in dataset.samples if sample.domain == "0016E5"]
    result = statistics(chosen, "camvid")
    road = sum(int((read_label(sample.label) == 0).sum()) for sample in chosen)
    assert (result.samples, result.class_pixels["road"]) == (2, road)
    assert result.sizes == ((20, 50, 2),)
    assert statistics(dataset.samples, "camvid").sizes == ((40, 30, 5), (20, 50, 2))


@pytest.mark.parametrize("jobs", [1, 3])
def test_mean_and_deviation_are_those_of_all_pixels(dataset, jobs):
    events = []
    result = statistics(dataset.samples, "camvid", images=0, jobs=jobs, on_event=events.append)
    pixels = [read_image(sample.image).reshape(-1, 3) for sample in dataset.samples]
    together = np.concatenate(pixels) / 255
    assert result.mean == pytest.approx(together.mean(axis=0), abs=1e-12)
    assert result.std == pytest.approx(together.std(axis=0), abs=1e-12)
    assert result.looked_at == 7
    assert [(event.done, event.total) for event in events] == [(n, 7) for n in range(1, 8)]


def test_a_few_images_stand_for_all(dataset):
    result = statistics(dataset.samples, "camvid", images=2)
    ends = [read_image(dataset.samples[n].image).reshape(-1, 3) for n in (0, -1)]
    assert result.mean == pytest.approx(np.concatenate(ends).mean(axis=0) / 255, abs=1e-12)
    assert result.looked_at == 2
    assert [s.id[-1] for s in evenly_spaced(dataset.samples[:5], 3)] == ["0", "2", "4"]
    assert evenly_spaced(dataset.samples, 99) == list(dataset.samples)


def test_a_sample_without_a_record_or_an_image_is_named(dataset):
    records = (dataset.root / RECORDS).read_text().splitlines()
    (dataset.root / RECORDS).write_text("\n".join(records[1:]))
    with pytest.raises(DataError, match="says nothing of the sample 0001TP_00000"):
        statistics(dataset.samples, "camvid")
    dataset.samples[1].image.unlink()
    with pytest.raises(DataError, match=f"{dataset.samples[1].image} does not exist"):
        statistics(dataset.samples[1:], "camvid")


def _statistics(pixels: dict[str, int]) -> Statistics:
    return Statistics(
        samples=4,
        sizes=((200, 100, 4),),
        class_pixels={name: pixels.get(name, 0) for name in CITYSCAPES.names},
        class_images={name: int(name in pixels) for name in CITYSCAPES.names},
        mean=(0.4, 0.5, 0.6),
        std=(0.1, 0.2, 0.3),
        looked_at=4,
    )


def _bar(figure: Figure, name: str) -> float:
    """Return the length of the bar of a class in pixels."""
    axes = figure.axes[0]
    bar = axes.patches[CITYSCAPES.names.index(name)]
    start, end = axes.transData.transform([(0, 0), (bar.get_width(), 0)])[:, 0]
    return end - start


def test_bars_are_as_long_as_the_root_of_the_share():
    figure = plot_statistics(_statistics({"road": 40_000, "car": 10_000, "rider": 400}), "toy")
    road = _bar(figure, "road")
    assert road > 400
    assert _bar(figure, "car") == pytest.approx(road / 2)
    assert _bar(figure, "rider") == pytest.approx(road / 10)
    assert _bar(figure, "bus") == 0
    colors = [np.array(bar.get_facecolor()[:3]) * 255 for bar in figure.axes[0].patches]
    np.testing.assert_allclose(colors, [*CITYSCAPES.classes.values()])


def test_a_plot_shows_its_title_and_survives_odd_numbers():
    def texts(figure):
        return [text.get_text() for text in figure.findobj(Text)]

    metrics = _statistics({"sky": 1})
    assert {"one", "100%", "1  (25.0%)"} <= {*texts(plot_statistics(metrics, "one"))}
    assert plot_bytes(plot_statistics(_statistics({}), "nothing labelled"))
    odd = replace(metrics, sizes=((2000, 1000, 1), (1, 1, 2), (3, 4, 1)), samples=12_000)
    (head,) = [text for text in texts(plot_statistics(odd, "é漢" * 100)) if "samples" in text]
    assert head.startswith("12,000 samples · 2000x1000 and 2 other sizes")


def _sample(folder: Path, name: str, train_ids: NDArray[np.uint8]) -> Sample:
    image = np.full((*train_ids.shape, 3), 200, np.uint8)
    write_png(folder / f"{name}.png", image)
    write_png(folder / f"{name}_label.png", train_ids)
    height, width = train_ids.shape
    paths = folder / f"{name}.png", folder / f"{name}_label.png"
    return Sample(name, *paths, "val", "here", width, height)


def _squares(sheet: NDArray[np.uint8], below: int) -> set[str]:
    """Return the classes whose colours are in the legend, the part of a sheet below a row."""
    colors = {color: name for name, color in CITYSCAPES.classes.items()} | {(0, 0, 0): "ignored"}
    found = {tuple(color) for color in sheet[below:].reshape(-1, 3).tolist()}
    return {name for color, name in colors.items() if color in found}


def test_a_sheet_has_a_row_a_sample_and_tells_the_classes_that_occur(tmp_path):
    road = _sample(tmp_path, "road", np.zeros((40, 80), np.uint8))
    mixed = _sample(tmp_path, "mixed", np.full((40, 80), 13, np.uint8))
    two = contact_sheet([road, mixed], tile_width=160)
    one = contact_sheet([road, mixed], count=1, tile_width=160)
    row = two.shape[0] - one.shape[0]
    assert 80 < row < 80 + 40  # a picture and what stands above it
    assert two.shape[1] == one.shape[1] >= 3 * (160 + GAP)
    assert _squares(two, two.shape[0] - 40) == {"road", "car"}
    assert _squares(one, one.shape[0] - 40) == {"road"}


def test_a_sheet_tells_what_is_ignored_and_which_sample_it_shows(tmp_path):
    train_ids = np.zeros((40, 80), np.uint8)
    train_ids[:20] = 255
    sample = _sample(tmp_path, "half", train_ids)
    sheet = contact_sheet([sample], tile_width=160)
    assert _squares(sheet, sheet.shape[0] - 40) == {"road", "ignored"}
    others = {"id": "other", "domain": "there", "split": "train", "width": 81, "height": 41}
    for other in ({key: value} for key, value in others.items()):
        assert not np.array_equal(contact_sheet([replace(sample, **other)], tile_width=160), sheet)


@pytest.mark.parametrize("shape", [(1, 1), (400, 300), (300, 400), (2000, 1), (1, 2000), (9, 7)])
def test_pictures_of_any_shape_fit_on_a_sheet(tmp_path, shape):
    odd = _sample(tmp_path, "odd", np.full(shape, 10, np.uint8))
    usual = _sample(tmp_path, "usual", np.zeros((50, 100), np.uint8))
    sheet = contact_sheet([odd, usual], tile_width=100)
    assert sheet.shape[1] == contact_sheet([usual], tile_width=100).shape[1]
    assert sheet.shape[0] < 400
    assert (sheet == CITYSCAPES.classes["sky"]).all(axis=2).any()


def test_tall_pictures_are_centred_in_their_place_and_small_ones_keep_their_pixels():
    (tall,) = (side_by_side([np.zeros((300, 100, 3), np.uint8)], 100),)
    assert tall.shape == (150, 100 + GAP, 3)
    assert (tall[0, :, 0] == 0).nonzero()[0].tolist() == list(range(25, 75))
    two = np.array([[(255, 0, 0), (0, 0, 255)]], np.uint8)
    assert np.unique(side_by_side([two], 100)[:, :100].reshape(-1, 3), axis=0).shape == (2, 3)


def test_a_sample_that_cannot_be_read_ends_the_sheet(tmp_path):
    sample = _sample(tmp_path, "gone", np.zeros((4, 4), np.uint8))
    sample.label.unlink()
    with pytest.raises(DataError, match="does not exist"):
        contact_sheet([sample])


def test_texts_are_cut_to_fit_and_written_in_letters_that_the_font_has():
    assert shortened("Würzburg · day", 13, 500) == "Wurzburg · day"
    assert shortened("漢 € é", 13, 500) == "? ? e"
    cut = shortened("a long name of something", 13, 60)
    assert cut.startswith("a long") and cut.endswith("…") and len(cut) < 12
    assert shortened("name", 13, 1) == ""


def test_statistics_are_plain_data(dataset):
    result = statistics(dataset.samples, "camvid")
    assert json.loads(json.dumps(result.__dict__))["looked_at"] == 7
