"""Datasets with classes of their own, and samples that are read into another label space."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, camvid_folder, small_config
from matplotlib.text import Text

from pinmem_core.data.batches import load_domains
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import get_card, parse_card
from pinmem_core.data.loader import DomainLoader
from pinmem_core.data.pack import pack
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.data.preview import contact_sheet, plot_statistics
from pinmem_core.data.statistics import statistics
from pinmem_core.data.unpack import unpack
from pinmem_core.data.verify import verify
from pinmem_core.errors import ConfigError, DataError, StoppedRunError
from pinmem_core.images import write_png
from pinmem_core.label_files import read_label
from pinmem_core.label_space import CITYSCAPES, common_space, label_space
from pinmem_core.study import read_sweep, run_study
from pinmem_core.study.plan import plan_study

LEVEL1 = label_space("idd-level1")
CAMPUS = """
name: campus
title: Robots on a campus
label_space:
  classes: {path: [10, 20, 30], lawn: , house: "1,2,3"}
  maps:
    cityscapes-19: {sidewalk: path, terrain: lawn, building: house}
label_maps:
  own:
    values: {0: void, 3: dirt}
    classes: {path: [3, 4], lawn: 5, house: 6}
layouts:
  - name: folders
    image: "images/{name}.png"
    label: "labels/{name}.png"
    label_maps: [own, trainids]
    id: "{name}"
"""

STUDY = """
title = "own classes"
recipe = "demo"
seeds = [0]
sources = ["idd-lite"]
targets = ["idd-lite"]
baseline = "plain"

[settings]
iterations = 2
batch = 1
device = "cpu"
allow_seen_targets = true
"augmentation.crop" = 64
"model.backbone" = "tiny"
"model.feature_dim" = 16

[variants.plain]
about = "all"
settings = { method = "aggregate" }
"""


def _card(text: str = CAMPUS) -> DatasetCard:
    return parse_card(text, Path("campus.yaml"))


def _pair(folder: Path, name: str, label: list[list[int]]) -> None:
    pixels = np.array(label, np.uint8).repeat(4, 0).repeat(4, 1)
    write_png(folder / "images" / f"{name}.png", np.zeros((*pixels.shape, 3), np.uint8))
    write_png(folder / "labels" / f"{name}.png", pixels)


def _campus(folder: Path) -> PreparedDataset:
    for number in range(5):
        _pair(folder, f"{number}", [[0, 3, 4], [5, 6, 6]])
    return prepare(_card(), [folder])


def _idd_lite(folder: Path, label: list[list[int]]) -> PreparedDataset:
    for split, drive in (("train", "472"), ("train", "5"), ("val", "9")):
        pixels = np.array(label, np.uint8)
        image = folder / "leftImg8bit" / split / drive / "frame1_image.jpg"
        write_png(image.with_suffix(".png"), np.zeros((*pixels.shape, 3), np.uint8))
        write_png(folder / "gtFine" / split / drive / "frame1_label.png", pixels)
        write_png(folder / "gtFine" / split / drive / "frame1_inst_label.png", pixels)
    return prepare(get_card("idd-lite"), [folder])


def test_a_card_brings_its_own_classes(tmp_path):
    dataset = _campus(tmp_path)
    space = dataset.label_space
    assert (space.name, space.names) == ("campus", ("path", "lawn", "house"))
    assert list(space.classes.values()) == [(10, 20, 30), (0, 128, 0), (1, 2, 3)]
    assert read_label(dataset.samples[0].label)[::4, ::4].tolist() == [[255, 0, 0], [1, 2, 2]]
    assert dataset.summary["class_pixels"] == {"path": 160, "lawn": 80, "house": 160}
    assert dataset.summary["label_space"]["maps"]["cityscapes-19"]["terrain"] == ["lawn"]
    assert get_card("campus").space == space  # the stored card


def test_the_standard_map_of_train_ids_has_the_classes_of_the_card(tmp_path):
    _pair(tmp_path, "a", [[0, 1], [2, 255]])
    dataset = prepare(_card(), [tmp_path], label_map="trainids")
    assert dataset.samples[0].read()[1][::4, ::4].tolist() == [[0, 1], [2, 255]]
    _pair(tmp_path, "b", [[0, 1], [2, 3]])
    (defect,) = prepare(_card(), [tmp_path], label_map="trainids").summary["excluded"]
    assert "does not know: 3" in defect["reason"]


def test_samples_are_read_into_another_space(tmp_path):
    samples = _campus(tmp_path).samples
    mapped = samples.in_space(CITYSCAPES)
    assert (samples.label_space.name, mapped.label_space) == ("campus", CITYSCAPES)
    assert mapped[0].read()[1][::4, ::4].tolist() == [[255, 1, 1], [9, 2, 2]]
    for selection in (mapped[1:], mapped.of(split="train"), mapped.take(np.array([0]))):
        assert selection.label_space is CITYSCAPES
        assert selection[0].read()[1].max() == 255
    back = mapped.in_space(samples.label_space)  # from the files, not from the trainIds above
    assert back[0].read()[1][::4, ::4].tolist() == [[255, 0, 0], [1, 2, 2]]
    level1 = samples.in_space(LEVEL1)[0].read()[1]  # by way of Cityscapes
    assert level1[::4, ::4].tolist() == [[255, 1, 1], [1, 5, 5]]


def test_the_space_is_no_part_of_a_sample(tmp_path):
    samples = _campus(tmp_path).samples
    own, mapped = samples[0], samples.in_space(CITYSCAPES)[0]
    assert own == mapped and own.to_json() == mapped.to_json() and str(own) == str(mapped)
    assert samples == samples.in_space(CITYSCAPES)
    sent = pickle.loads(pickle.dumps(mapped))
    assert np.array_equal(sent.read()[1], mapped.read()[1])


def test_labels_are_checked_against_the_classes_of_their_dataset(tmp_path):
    sample = _campus(tmp_path).samples[0]
    write_png(sample.label, np.full((8, 12), 3, np.uint8))
    with pytest.raises(DataError, match="not trainIds: 3"):
        sample.read()


def test_a_dataset_of_own_classes_is_verified_and_counted_by_them(tmp_path):
    dataset = _campus(tmp_path)
    assert verify("campus").findings == ()
    result = statistics(dataset.samples, "campus")
    assert result.class_pixels == dataset.summary["class_pixels"]
    assert result.class_images == {"path": 5, "lawn": 5, "house": 5}
    sample = dataset.samples[0]
    write_png(sample.label, np.full((8, 12), 3, np.uint8))
    (reason,) = [f.reason for f in verify("campus").findings if f.file == str(sample.label)]
    assert reason == "holds values that are not trainIds: 3"


def test_a_preview_has_the_colours_of_the_classes(tmp_path):
    samples = _campus(tmp_path).samples
    for chosen, colors in (
        (samples, [(10, 20, 30), (1, 2, 3)]),
        (samples.in_space(CITYSCAPES), []),
    ):
        sheet = contact_sheet(chosen, count=1, tile_width=96).reshape(-1, 3)
        seen = {tuple(color) for color in np.unique(sheet, axis=0).tolist()}
        assert {*colors} == seen & {(10, 20, 30), (1, 2, 3)}
    figure = plot_statistics(statistics(samples, "campus"), "campus", samples.label_space)
    assert {"path", "lawn", "house"} <= {t.get_text() for t in figure.findobj(Text)}


def test_info_lists_the_classes_and_the_spaces_that_they_map_to(tmp_path):
    (tmp_path / "campus.yaml").write_text(CAMPUS)
    _campus(tmp_path)
    shown = Result("data", "info", "campus", "--json").json
    assert shown["classes"] == ["path", "lawn", "house"]
    assert shown["maps_to"] == ["cityscapes-13", "cityscapes-16", "cityscapes-19", "idd-level1"]
    assert "3 (campus): path, lawn, house" in Result("data", "info", "campus").out
    assert "mapillary-66" in Result("data", "info", "mapillary").out


def test_a_pack_carries_the_label_space(tmp_path, monkeypatch):
    dataset = _campus(tmp_path / "raw")
    pack("campus", tmp_path / "campus.tar")
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "elsewhere"))
    moved = unpack(tmp_path / "campus.tar")
    assert moved.label_space == dataset.label_space
    assert moved.summary["class_pixels"] == dataset.summary["class_pixels"]
    assert verify("campus").findings == ()


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        ({"name": "campus", "classes": ["path", "lawn"]}, "holds values that are not trainIds"),
        ({"name": "campus", "classes": ["path", "lawn", "house", "sky"]}, "numbers of pixels"),
        ({"name": "campus", "classes": "path"}, "cannot be read"),
    ],
)
def test_a_pack_with_other_classes_than_its_labels_is_refused(tmp_path, space, reason):
    dataset = _campus(tmp_path / "raw")
    path = dataset.root / "dataset.json"
    pack("campus", tmp_path / "campus.tar")
    other = tmp_path / "other.tar"
    with tarfile.open(tmp_path / "campus.tar") as old, tarfile.open(other, "w") as new:
        for member in old:
            content = old.extractfile(member).read()
            if member.name == path.name:
                content = json.dumps({**json.loads(content), "label_space": space}).encode()
                member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=reason):
        unpack(other)


@pytest.mark.parametrize("space", ["campus", {"name": "campus", "classes": []}, {}])
def test_a_damaged_label_space_is_one_sentence(tmp_path, space):
    path = _campus(tmp_path).root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "label_space": space}))
    with pytest.raises(DataError, match=r"is damaged: dataset\.json"):
        PreparedDataset.open("campus")


def test_idd_lite_is_prepared_at_level_1(tmp_path):
    dataset = _idd_lite(tmp_path, [[0, 1, 2, 3], [4, 5, 6, 255]])
    assert dataset.counts == {"train": 2, "val": 1} and not dataset.summary["excluded"]
    assert (dataset.domains, dataset.label_space) == ({"idd-lite": 3}, LEVEL1)
    assert dataset.samples[0].read()[1].tolist() == [[0, 1, 2, 3], [4, 5, 6, 255]]


def test_idd_is_prepared_at_levels_3_and_1_from_polygons(tmp_path):
    names = ["animal", "trailer", "tunnel", "polegroup", "unlabeled"]
    objects = [
        {"label": name, "polygon": [[x, 0], [x + 1, 0], [x + 1, 3], [x, 3]]}
        for x, name in zip(range(0, 10, 2), names, strict=True)
    ]
    write_png(tmp_path / "leftImg8bit/val/1/a_leftImg8bit.png", np.zeros((4, 10, 3), np.uint8))
    label = tmp_path / "gtFine/val/1/a_gtFine_polygons.json"
    label.parent.mkdir(parents=True)
    label.write_text(json.dumps({"imgHeight": 4, "imgWidth": 10, "objects": objects}))
    for space, expected in (("idd-26", [4, 12, 23, 20, 255]), ("idd-level1", [2, 3, 5, 4, 255])):
        dataset = prepare(get_card("idd"), [tmp_path], label_map=space)
        assert dataset.label_space == label_space(space)
        assert read_label(dataset.samples[0].label)[1, ::2].tolist() == expected
    dataset = prepare(get_card("idd"), [tmp_path], label_map="idd-26")
    assert dataset.samples.in_space(LEVEL1)[0].read()[1][1, ::2].tolist() == [2, 3, 5, 4, 255]


@pytest.mark.parametrize("label_map", [None, "camvid-11"])
@pytest.mark.parametrize("is_older", [False, True])
def test_cyclists_of_camvid_are_neither_persons_nor_vehicles(tmp_path, label_map, is_older):
    dataset = prepare(
        get_card("camvid"), [camvid_folder(tmp_path, {"0001TP": 2})], label_map=label_map
    )
    if is_older and label_map is None:  # before label spaces were recorded
        path = dataset.root / "dataset.json"
        summary = json.loads(path.read_text())
        del summary["label_space"]
        path.write_text(json.dumps(summary))
        dataset = PreparedDataset.open("camvid")
    sample = dataset.samples.in_space(LEVEL1)[0]
    raw = read_label(tmp_path / "labels" / f"{sample.id}.png")
    table = np.array([6, 5, 4, 0, 1, 5, 4, 4, 3, 2, 255, 255], np.uint8)
    assert np.array_equal(sample.read()[1], table[raw])
    classes = {None: CITYSCAPES, "camvid-11": label_space("camvid-11")}[label_map]
    assert dataset.label_space.same_as(classes)


def test_a_dataset_has_the_maps_that_its_known_space_has_got_since(tmp_path):
    path = _idd_lite(tmp_path, [[0, 1, 2, 3]]).root / "dataset.json"
    summary = json.loads(path.read_text())
    summary["label_space"] = {**CITYSCAPES.model_dump(mode="json"), "maps": {}}
    path.write_text(json.dumps(summary))
    assert PreparedDataset.open("idd-lite").label_space == CITYSCAPES


def test_sources_of_different_spaces_train_together(tmp_path):
    prepare(get_card("camvid"), [camvid_folder(tmp_path / "camvid", {"0001TP": 5})])
    _idd_lite(tmp_path / "idd", [[0, 1, 2, 3], [4, 5, 6, 255]])
    sources = ["camvid", "idd-lite"]
    assert common_space([PreparedDataset.open(s).label_space for s in sources]) == LEVEL1
    for space in (None, LEVEL1):
        domains = load_domains(sources, pseudo_domains=2, seed=0, space=space)
        for domain in domains:
            assert {*np.unique(domain.samples[0].read()[1]).tolist()} <= {*range(7), 255}
    with pytest.raises(ConfigError, match=r"^idd-lite: .*'non-drivable' is several classes"):
        load_domains(sources, pseudo_domains=2, seed=0, space=CITYSCAPES)


def test_pseudo_domains_are_read_into_the_space(tmp_path):
    _campus(tmp_path)
    domains = load_domains(["campus"], pseudo_domains=2, seed=0, space=CITYSCAPES)
    assert all(domain.samples.label_space is CITYSCAPES for domain in domains)


@pytest.mark.parametrize("rare", [None, 0.1])
def test_a_source_of_which_the_space_has_no_class_is_refused_with_the_card_to_mend(tmp_path, rare):
    for number in range(5):
        _pair(tmp_path, f"{number}", [[3, 4], [5, 5]])
    prepare(_card(CAMPUS.replace("sidewalk: path, terrain: lawn, ", "")), [tmp_path])
    domains = load_domains(["campus"], pseudo_domains=2, seed=0, space=CITYSCAPES)
    config = small_config(augmentation__rare_classes=rare, augmentation__crop=32)
    with pytest.raises(DataError, match="of the classes 'cityscapes-19'") as error:
        list(DomainLoader.of(domains, config, range(2), shard=(0, 1)))
    assert "the classes 'campus'" in error.value.hint
    assert "label_space: maps: cityscapes-19" in error.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lawn: ,", "lawn: ,,", "campus.yaml, line 5: "),
        ("lawn: ,", "lawn: red,", "line 5: label_space.classes: the colour of 'lawn' is not three"),
        ("[10, 20, 30]", "[10, 20, 300]", "line 5: label_space.classes.path.2: "),
        (
            "terrain: lawn",
            "terain: lawn",
            "line 7: label_space.maps.cityscapes-19.terain: unknown class 'terain'",
        ),
        (
            "terrain: lawn",
            "terrain: grass",
            "line 4: label_space: maps.cityscapes-19: 'grass' is not a class",
        ),
        (
            "label_space:\n",
            "label_space:\n  name: idd-level1\n",
            "line 5: label_space.name: 'idd-level1' is a known",
        ),
        (
            "lawn: 5",
            "loan: 5",
            "line 11: label_maps.own.classes.loan: unknown class 'loan'. Did you mean 'lawn'",
        ),
        ("lawn: 5", "road: 5", "line 11: label_maps.own.classes.road: unknown class 'road'"),
        (
            "  own:\n",
            "  own:\n    space: cityscape-19\n",
            "line 10: label_maps.own.space: unknown label space",
        ),
        (
            "  own:\n",
            "  own:\n    ids_of: idd-level1\n",
            "line 10: label_maps.own.ids_of: the ids of 'idd-level1'",
        ),
        (
            "  own:\n",
            "  own:\n    maps: {idd-level1: {sky: clouds}}\n",
            "line 9: label_maps.own: maps.idd-level1: 'clouds' is not a class",
        ),
        (
            "  own:\n",
            "  own:\n    maps: {idd-level1: {clouds: lawn}}\n",
            "label_maps.own.maps.idd-level1.clouds: unknown class",
        ),
    ],
)
def test_a_wrong_space_is_refused_with_its_line(old, new, message):
    assert old in CAMPUS
    with pytest.raises(ConfigError) as raised:
        _card(CAMPUS.replace(old, new, 1))
    assert message in raised.value.message
    assert "\n" not in raised.value.message


def test_splits_with_different_classes_are_refused(tmp_path):
    head, layouts = CAMPUS.replace('name}.png"', 'name}.png"\n    split: "{split}"', 1).split(
        "layouts:"
    )
    layout = layouts.replace("images/", "{split}/images/").replace("labels/", "{split}/labels/")
    other = layout.replace("labels/", "ids/").replace("[own, trainids]", "cityscapes-ids")
    card = _card(f"{head}layouts:{layout}{other.replace('folders', 'ids')}")
    _pair(tmp_path / "train", "a", [[3, 5]])
    _pair(tmp_path / "val", "b", [[7, 8]])
    (tmp_path / "val" / "labels").rename(tmp_path / "val" / "ids")
    with pytest.raises(DataError, match="the split val have the classes 'cityscapes-19', those of"):
        prepare(card, [tmp_path])


@pytest.mark.slow
def test_a_study_has_the_classes_of_its_sources(tmp_path):
    _idd_lite(tmp_path / "idd", [[0, 1] * 32] * 64)  # cannot be mapped to the classes of Cityscapes
    file = tmp_path / "study.toml"
    file.write_text(STUDY)
    sweep = read_sweep(file)
    assert plan_study(sweep, only_long=True)[""].images == 2
    with pytest.raises(StoppedRunError):
        run_study(sweep, tmp_path / "study", stop=lambda: True)
