"""How label files are read, checked against files made byte by byte."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from published import IDD_NAMES, palette, polygons, rgb16
from torchvision.io import ImageReadMode, decode_png

from pinmem_core.data.catalog import get_card
from pinmem_core.data.encodings import ENCODINGS
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.data.layouts import RawSample
from pinmem_core.data.prepare import expand, split_of_each
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.images import check_image
from pinmem_core.label_files import read_rgb16

NO_MAP = LabelMap.from_ids({0: 0})
IDD = get_card("idd").label_map("ids")


def test_palette_pictures_give_ids_not_colours(tmp_path):
    raw = np.random.default_rng(0).integers(0, 35, (9, 13))
    (tmp_path / "a.png").write_bytes(palette(raw))
    assert np.array_equal(ENCODINGS.get("ids")(tmp_path / "a.png", NO_MAP), raw)


@pytest.mark.parametrize("seed", range(3))
def test_all_16_bits_are_read_as_another_decoder_reads_them(tmp_path, seed):
    raw = np.random.default_rng(seed).integers(0, 1 << 16, (11, 8))
    data = rgb16(raw, seed)
    (tmp_path / "a.png").write_bytes(data)
    pixels = read_rgb16(tmp_path / "a.png")
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    other = decode_png(flat, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, other)
    assert np.array_equal(pixels[..., 0], raw)
    assert np.array_equal(ENCODINGS.get("ids16")(tmp_path / "a.png", NO_MAP), raw)


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("encoding", ["ids", "ids16"])
def test_one_flipped_bit_is_noticed(tmp_path, encoding, position):
    raw = np.random.default_rng(0).integers(0, 23, (40, 60))
    data = bytearray(rgb16(raw) if encoding == "ids16" else palette(raw))
    start = data.index(b"IDAT") + 4
    data[start + int((len(data) - start - 20) * position)] ^= 4
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        ENCODINGS.get(encoding)(tmp_path / "a.png", NO_MAP)


def test_an_8_bit_copy_of_a_16_bit_label_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="not a 16-bit RGB PNG"):
        ENCODINGS.get("ids16")(tmp_path / "a.png", NO_MAP)


@pytest.mark.parametrize("form", ["jpeg", "webp", "png"])
def test_a_torn_picture_is_noticed_without_decoding_it_whole(tmp_path, form):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    (tmp_path / "whole").write_bytes(data.getvalue())
    (tmp_path / "torn").write_bytes(data.getvalue()[:-400])
    check_image(tmp_path / "whole")
    with pytest.raises(DataError, match="torn cannot be read"):
        check_image(tmp_path / "torn")


def test_polygons_are_drawn_over_each_other(tmp_path):
    scene, raw = polygons(dict(enumerate(IDD_NAMES)), seed=1)
    (tmp_path / "a.json").write_bytes(scene)
    assert np.array_equal(ENCODINGS.get("polygons")(tmp_path / "a.json", IDD), raw)


@pytest.mark.parametrize(
    ("scene", "reason"),
    [
        ("{", "cannot be read"),
        ('{"imgWidth": 3, "imgHeight": 3}', "no 'objects'"),
        ('{"imgWidth": 3, "objects": []}', "no 'imgHeight'"),
        (
            json.dumps(
                {
                    "imgWidth": 3,
                    "imgHeight": 3,
                    "objects": [{"label": "spaceship", "polygon": [[0, 0], [1, 1], [2, 0]]}],
                }
            ),
            "'spaceship' is not one of",
        ),
    ],
)
def test_a_wrong_polygon_file_is_told(tmp_path, scene, reason):
    (tmp_path / "a.json").write_text(scene)
    with pytest.raises(DataError, match=reason):
        ENCODINGS.get("polygons")(tmp_path / "a.json", IDD)


SQUARE = [[0, 0], [2, 0], [2, 2]]


def _scene(
    width: object = 3, height: object = 3, *objects: object, polygon: object = SQUARE
) -> str:
    shape = {"label": "road", "polygon": polygon}
    return json.dumps({"imgWidth": width, "imgHeight": height, "objects": [shape, *objects]})


@pytest.mark.parametrize(
    ("scene", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested deeper than"),
        ('{"imgWidth": 1' + "0" * 5000 + "}", "a number of 5001 digits"),
        ("[]", "cannot be read as polygons"),
        ("null", "cannot be read as polygons"),
        (_scene(10**6, 10**6), "claims 1000000x1000000 pixels"),
        (_scene(100_000, 100_000), "claims 100000x100000 pixels"),
        (_scene(float("inf")), "not finite"),
        (_scene(3, float("nan")), "not finite"),
        ('{"imgWidth": 3, "imgWidth": 4}', "the key 'imgWidth' twice"),
        (_scene(0), "imgWidth is no number of pixels"),
        (_scene(-3), "imgWidth is no number of pixels"),
        (_scene(3.5), "imgWidth is no number of pixels"),
        (_scene("3"), "imgWidth is no number of pixels"),
        (_scene(None), "imgWidth is no number of pixels"),
        (_scene(3, 3, [1, 2]), "no set of keys"),
        (_scene(3, 3, None), "no set of keys"),
        (_scene(3, 3, {"label": None, "polygon": SQUARE}), "label None is no text"),
        (_scene(3, 3, {"label": ["car"], "polygon": SQUARE}), "is no text"),
        (_scene(3, 3, {"label": "road"}), "no 'polygon'"),
        (_scene(polygon=None), "no list"),
        (_scene(polygon={"x": 1}), "no list"),
        (_scene(polygon="abc"), "no list"),
        (_scene(polygon=[1, 2, 3]), "no list of points"),
        (_scene(polygon=[[0, 0], [1], [2, 2]]), "no list of points"),
        (_scene(polygon=[[0, 0, 0]] * 3), "no list of points"),
        (_scene(polygon=[["0", "1"]] * 3), "no list of points"),
        (_scene(polygon=[[None, 1], [5, 1], [5, 5]]), "no list of points"),
        (_scene(polygon=[[10**400, 1], [5, 1], [5, 5]]), "a number of 401 digits"),
        (_scene(polygon=[[float("nan"), 1], [5, 1], [5, 5]]), "not finite"),
        (_scene(polygon=[[float("inf"), 1], [5, 1], [5, 5]]), "not finite"),
        (_scene(polygon=[[1e20, 1], [5, 1], [5, 5]]), "reaches beyond"),
        (_scene(polygon=[[-(2**63), 1], [5, 1], [5, 5]]), "reaches beyond"),
        (
            _scene(
                9000, 9000, *[{"label": "road", "polygon": [[0, 0], [9000, 0], [0, 9000]]}] * 200
            ),
            "too many or too large",
        ),
    ],
)
def test_an_odd_polygon_file_is_refused_before_anything_is_drawn(tmp_path, scene, reason):
    (tmp_path / "a.json").write_text(scene)
    with pytest.raises(DataError, match=reason):
        ENCODINGS.get("polygons")(tmp_path / "a.json", IDD)


def test_a_polygon_file_of_no_sane_size_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="larger than 16,777,216 bytes"):
        ENCODINGS.get("polygons")(tmp_path / "a.json", IDD)


def test_polygons_may_reach_over_the_border_and_lie_behind_a_byte_order_mark(tmp_path):
    scene = _scene(8, 8, polygon=[[-50, -50], [50.5, -50], [50, 50], [-50, 50]])
    (tmp_path / "a.json").write_text(scene, encoding="utf-8-sig")
    ids = ENCODINGS.get("polygons")(tmp_path / "a.json", IDD)
    assert ids.shape == (8, 8) and (ids == IDD.ids["road"]).all()


def test_an_unknown_encoding_suggests_a_known_one():
    with pytest.raises(ConfigError) as error:
        ENCODINGS.get("polygon")
    assert "polygons" in (error.value.hint or "")


def test_ranges_of_split_lists_keep_their_width():
    assert list(expand(["00009..00011", "x-1", "5"])) == ["00009", "00010", "00011", "x-1", "5"]


def test_lists_overrule_folders_and_leave_out_the_rest(tmp_path):
    samples = [RawSample(name, "d", "train", tmp_path, None) for name in ("01", "02", "03")]
    lists = {"val": ["01..02"]}
    assert split_of_each(samples, lists) == {"01": "val", "02": "val", "03": None}
    assert split_of_each(samples, {}) == {"01": "train", "02": "train", "03": "train"}
