"""Annotation files of other tools: labelme, COCO, YOLO."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pinmem_core.data.encodings import ENCODINGS
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.errors import DataError

coco_mask = pytest.importorskip("pycocotools.mask")

SIZE = (40, 30)
NAMES = {0: "unlabeled", 1: "road", 2: "car", 3: "sky"}
MAP = LabelMap.from_ids({0: 255, 1: 0, 2: 13, 3: 10}, NAMES)
YOLO = LabelMap.from_ids({0: 0, 1: 13, 255: 255}, {0: "road", 1: "car", 255: "unlabeled"})
TRIANGLE = [[2.5, 3.2], [30.7, 5.1], [20.2, 27.9]]
SQUARE = [[10, 10], [25, 10], [25, 20], [10, 20]]


def put(folder: Path, name: str, content: object, size=SIZE) -> tuple[Path, Path]:
    """Write an image and an annotation file; return the latter and the former."""
    Image.new("1", size).save(folder / "a.png")
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name, folder / "a.png"


def read(encoding: str, label_map: LabelMap, paths: tuple[Path, Path]) -> np.ndarray:
    return ENCODINGS.get(encoding)(paths[0], label_map, paths[1])


def drawn(*shapes, kind="polygon") -> np.ndarray:
    """Return the ids of shapes drawn by Pillow."""
    canvas = Image.new("L", SIZE)
    for points, value in shapes:
        getattr(ImageDraw.Draw(canvas), kind)([tuple(point) for point in points], fill=value)
    return np.asarray(canvas)


# labelme


def labelme(*shapes: dict, **more: object) -> dict:
    scene = {"version": "5.4.1", "flags": {}, "imagePath": "a.png", "imageData": None}
    sides = {"imageHeight": SIZE[1], "imageWidth": SIZE[0]}
    return {**scene, **sides, "shapes": list(shapes), **more}


def shape(label: object, points: object, kind: object = "polygon", **more: object) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def test_shapes_of_labelme_are_drawn_over_each_other_as_its_own_tool_does(tmp_path):
    scene = labelme(
        shape("road", TRIANGLE), shape("car", SQUARE), shape("sky", [[1, 1], [2, 2]], "line")
    )
    found = read("labelme", MAP, put(tmp_path, "a.json", scene))
    assert np.array_equal(found, drawn((TRIANGLE, 1), (SQUARE, 2)))


def test_rectangles_circles_and_masks_of_labelme(tmp_path):
    data = io.BytesIO()
    Image.fromarray(np.array([[0, 1, 1], [1, 1, 0]], np.uint8)).save(data, "PNG")
    mask = base64.b64encode(data.getvalue()).decode()
    scene = labelme(
        shape("road", [[25, 20], [10, 10]], "rectangle"),
        shape("car", [[8, 8], [8, 12]], "circle"),
        shape("sky", [[30, 25], [32, 26]], "mask", mask=mask),
    )
    expected = np.maximum(drawn((SQUARE, 1)), drawn(([[4, 4], [12, 12]], 2), kind="ellipse"))
    expected[25:27, 30:33] = [[0, 3, 3], [3, 3, 0]]
    assert np.array_equal(read("labelme", MAP, put(tmp_path, "a.json", scene)), expected)


@pytest.mark.parametrize(
    ("scene", "reason"),
    [
        ('{"shapes": [', "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ("{}", "no list of 'shapes'"),
        (labelme(shapes=3), "no list of 'shapes'"),
        (labelme(shapes=[1]), "has no 'label'"),
        (labelme(shape(None, SQUARE)), "has no 'label'"),
        (labelme(shape("spaceship", SQUARE)), "'spaceship' is not one of"),
        (labelme(shape("car", SQUARE), imageWidth=41), "of an image of 41x30, not 40x30"),
        (labelme(shape("car", SQUARE), imageWidth="x"), "of an image of x"),
        (labelme({"label": "car"}), "no 'points'"),
        (labelme(shape("car", None)), "no list"),
        (labelme(shape("car", [[1, 2], [3]])), "no list of points"),
        (labelme(shape("car", [[1, 2], [3, "4"], [5, 6]])), "no list of points"),
        (labelme(shape("car", [[1, 2], [3, 1e30], [5, 6]])), "reaches beyond"),
        (labelme(shape("car", [[1, 2], [3, float("nan")], [5, 6]])), "not finite"),
        (labelme(shape("car", [[1, 2], [3, 4]])), "'polygon' of 'car' has 2 points"),
        (labelme(shape("car", SQUARE[:3], "circle")), "'circle' of 'car' has 3 points"),
        (labelme(shape("car", SQUARE, "spline")), "'spline' of 'car'"),
        (labelme(shape("car", SQUARE[:2], "mask")), "no 'mask'"),
        (labelme(shape("car", SQUARE[:2], "mask", mask="%")), "cannot be read"),
        (labelme(shape("car", SQUARE[:2], "mask", mask="aGk=")), "cannot be read"),
        (labelme(shape("car", SQUARE[:2], "mask", mask=7)), "cannot be read"),
    ],
)
def test_a_malformed_file_of_labelme_is_refused(tmp_path, scene, reason):
    with pytest.raises(DataError, match=reason):
        read("labelme", MAP, put(tmp_path, "a.json", scene))


# COCO


def coco(*annotations: dict, **more: object) -> dict:
    width, height = SIZE
    image = {"id": 7, "file_name": "a.png", "width": width, "height": height}
    categories = [{"id": 5, "name": "road"}, {"id": 9, "name": "car"}, {"id": 11, "name": "sky"}]
    numbered = [{"id": number, "image_id": 7, **a} for number, a in enumerate(annotations)]
    return {"images": [image], "categories": categories, "annotations": numbered, **more}


def segmented(category: object, segmentation: object) -> dict:
    return {"category_id": category, "segmentation": segmentation, "iscrowd": 0}


def random_mask(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random(SIZE[::-1]).cumsum(axis=seed % 2) % 7 < rng.integers(1, 6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("compressed", [True, False])
def test_masks_of_coco_are_those_of_its_own_tool(tmp_path, seed, compressed):
    mask = random_mask(seed)
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = rle["counts"].decode()
    if not compressed:
        flat = mask.ravel(order="F")
        ends = [0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]
        counts = [0] * bool(flat[0]) + np.diff(ends).tolist()
    scene = coco(segmented(9, {"size": [SIZE[1], SIZE[0]], "counts": counts}))
    assert np.array_equal(read("coco", MAP, put(tmp_path, "all.json", scene)), mask * 2)


def test_a_long_mask_of_coco(tmp_path):
    size = (3000, 2000)
    mask = np.zeros(size[::-1], bool)
    mask[100:1900, 1500:] = mask[5, 7] = True
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = {"size": rle["size"], "counts": rle["counts"].decode()}
    scene = coco(segmented(9, counts), images=[{"id": 7, "file_name": "a.png"}])
    assert np.array_equal(read("coco", MAP, put(tmp_path, "all.json", scene, size)), mask * 2)


@pytest.mark.parametrize("seed", range(8))
def test_polygons_of_coco_differ_from_its_own_tool_at_most_along_the_border(tmp_path, seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(4, 22, (9, 1))
    polygon = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + [20, 15]
    scene = coco(segmented(9, [polygon.ravel().tolist()]))
    found = read("coco", MAP, put(tmp_path, "all.json", scene)) == 2
    (other,) = coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().tolist()], *SIZE[::-1])).T
    other = other.T.astype(bool)
    centres = np.moveaxis(np.indices(SIZE[::-1])[::-1], 0, -1)[..., None, :] + 0.5
    along = np.roll(polygon, -1, axis=0) - polygon
    place = ((centres - polygon) * along).sum(axis=-1) / (along**2).sum(axis=-1)
    nearest = polygon + np.clip(place, 0, 1)[..., None] * along
    distance = np.linalg.norm(centres - nearest, axis=-1).min(axis=-1)
    assert not (found ^ other)[distance > 0.75].any()
    assert (found & other).sum() > 0.93 * (found | other).sum()


def test_corners_between_pixels_leave_no_seam_and_no_overlap(tmp_path):
    left, right = [0, 0, 20, 0, 20, 30, 0, 30], [20, 0, 40, 0, 40, 30, 20, 30]
    scene = coco(segmented(5, [left]), segmented(9, [right]))
    found = read("coco", MAP, put(tmp_path, "all.json", scene))
    assert (found[:, :20] == 1).all() and (found[:, 20:] == 2).all()
    scene = coco(segmented(9, [right]), segmented(5, [left]))
    assert np.array_equal(read("coco", MAP, put(tmp_path, "all.json", scene)), found)


def test_later_annotations_cover_earlier_ones_and_a_polygon_may_have_parts(tmp_path):
    everything = [0, 0, 40, 0, 40, 30, 0, 30]
    parts = [[-9, -9, 5, -9, 5, 5, -9, 5], [30, 20, 99, 20, 99, 99, 30, 99]]
    scene = coco(segmented(5, [everything]), segmented(11, parts))
    found = read("coco", MAP, put(tmp_path, "all.json", scene))
    expected = np.ones(SIZE[::-1])
    expected[:5, :5] = expected[20:, 30:] = 3
    assert np.array_equal(found, expected)


def test_an_annotation_without_a_shape_is_not_drawn(tmp_path):
    scene = coco(segmented(5, []), {"category_id": 9, "bbox": [1, 2, 3, 4]})
    assert not read("coco", MAP, put(tmp_path, "all.json", scene)).any()


def test_of_images_with_one_name_the_folder_decides(tmp_path):
    entries = [
        {"id": number, "file_name": f"{folder}\\A.PNG"} for number, folder in enumerate(("x", "y"))
    ]
    square = segmented(9, [np.ravel(SQUARE).tolist()]) | {"image_id": 1}
    label, _ = put(tmp_path, "all.json", coco(square, images=entries))
    for folder, drawn_there in (("x", False), ("y", True)):
        (tmp_path / folder).mkdir()
        _, image = put(tmp_path / folder, "other.json", "{}")
        assert ENCODINGS.get("coco")(label, MAP, image).any() == drawn_there
    with pytest.raises(DataError, match=r"has no single entry for a\.png"):
        ENCODINGS.get("coco")(label, MAP, tmp_path / "a.png")


def panoptic(folder: Path, ids: np.ndarray, segments: object, place: str) -> tuple[Path, Path]:
    """Write segments as red + 256 green + 65536 blue."""
    (folder / place).mkdir(parents=True)
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    Image.fromarray(colors).save(folder / place / "a.png")
    annotation = {"image_id": 7, "file_name": "a.png", "segments_info": segments}
    return put(folder, "panoptic_val.json", coco(annotation))


@pytest.mark.parametrize("place", ["panoptic_val", "../panoptic_val"])
def test_segments_of_a_panoptic_png_have_the_class_of_their_category(tmp_path, place):
    segments = {0: 0, 3: 1, 700: 2, 70_000: 2, 16_777_215: 3}
    order = np.random.default_rng(0).integers(0, 5, SIZE[::-1])
    categories = {1: 5, 2: 9, 3: 11}
    info = [{"id": s, "category_id": categories[v]} for s, v in segments.items() if v]
    folder = tmp_path / "annotations"
    folder.mkdir()
    paths = panoptic(folder, np.array([*segments])[order], info, place)
    assert np.array_equal(read("coco", MAP, paths), np.array([*segments.values()])[order])


@pytest.mark.parametrize(
    ("size", "info", "reason"),
    [
        (SIZE, [], "holds the segment 4, which the JSON does not list"),
        (SIZE, [{"id": 4, "category_id": 3}], "category 3 is not among"),
        (SIZE, [{"id": 4}], "no 'category_id'"),
        (SIZE, 5, "cannot be read for a.png"),
        ((30, 30), [{"id": 4, "category_id": 5}], "a.png is of another size"),
    ],
)
def test_a_malformed_panoptic_annotation_is_refused(tmp_path, size, info, reason):
    paths = panoptic(tmp_path, np.full(size[::-1], 4), info, "panoptic_val")
    with pytest.raises(DataError, match=reason):
        read("coco", MAP, paths)


@pytest.mark.parametrize("file", ["../a.png", "/a.png", "x" * 5000, 7, "a\0.png"])
def test_a_panoptic_png_of_no_such_name_is_refused(tmp_path, file):
    annotation = {"image_id": 7, "file_name": file, "segments_info": []}
    with pytest.raises(DataError, match=r"no file of its folder|no text|is missing"):
        read("coco", MAP, put(tmp_path, "panoptic_val.json", coco(annotation)))


def test_a_panoptic_png_that_is_missing(tmp_path):
    paths = panoptic(tmp_path, np.zeros((2, 2), int), [], "elsewhere")
    with pytest.raises(DataError, match=r"panoptic_val/a.png is missing"):
        read("coco", MAP, paths)


def _rle(counts: object, size: object = (SIZE[1], SIZE[0])) -> dict:
    return coco(segmented(9, {"size": list(size) if size else None, "counts": counts}))


@pytest.mark.parametrize(
    ("scene", "reason"),
    [
        ('{"images": [', "cannot be read"),
        ("{}", "no 'categories'"),
        (coco(images=None), "'images' are no list"),
        (coco(images=[7]), "'images' are no list"),
        (coco(images=[{"id": 7, "file_name": 8}]), "8 is no text"),
        (coco(images=[{"file_name": "a.png"}]), "no 'id'"),
        (coco(images=[{"id": [], "file_name": "a.png"}]), "not in the format"),
        (coco(images=[{"id": 7, "file_name": "b.png"}]), "no single entry for a.png"),
        (coco(images=[{"id": 7, "file_name": "a.png"}] * 2), "no single entry for a.png"),
        (coco(images=[{"id": 7, "file_name": "a.png", "width": 1, "height": 1}]), "of 1x1, not"),
        (coco(images=[{"id": 7, "file_name": "a.png", "width": 1}]), "no 'height'"),
        (coco(annotations=3), "'annotations' are no list"),
        (coco(annotations=[{"id": 3}]), "no 'image_id'"),
        (coco({"segmentation": []}), "no 'category_id'"),
        (coco(segmented(3, [])), "category 3 is not among"),
        (coco(segmented([], [])), "cannot be read for a.png"),
        (coco(segmented(5, []), categories=[{"id": 5, "name": "ship"}]), "'ship' is not one"),
        (coco(segmented(9, [[1, 2, 3, 4, 5, 6, 7]])), "odd number"),
        (coco(segmented(9, [[1, 2, 3, 4]])), "fewer than three"),
        (coco(segmented(9, ["1 2 3 4 5 6"])), "no list"),
        (coco(segmented(9, 5)), "cannot be read for a.png"),
        (coco(segmented(9, [[1, 2, 3, 4, 5, None]])), "no list of points"),
        (coco(segmented(9, [[1, 2, 3, 4, 5, 1e9]])), "reaches beyond"),
        (coco(segmented(9, [[1, 2, 3, 4, 5, float("inf")]])), "not finite"),
        (_rle([1200], None), "another size"),
        (_rle([1200], (1, 1)), "another size"),
        (_rle([1199]), "do not fill"),
        (_rle([1201]), "do not fill"),
        (_rle([10**18]), "do not fill"),
        (_rle([1300, -100]), "do not fill"),
        (_rle([600.0, 600.0]), "do not fill"),
        (_rle([True] * 1200), "do not fill"),
        (_rle(None), "do not fill"),
        (_rle("zzz"), "do not fill"),
        (_rle("o" * 10_000), "do not fill"),
        (_rle("\u00fc"), "do not fill"),
        (_rle("0" * 50), "do not fill"),
    ],
)
def test_a_malformed_file_of_coco_is_refused(tmp_path, scene, reason):
    with pytest.raises(DataError, match=reason):
        read("coco", MAP, put(tmp_path, "all.json", scene))


def test_a_file_of_coco_is_read_again_once_it_has_changed(tmp_path):
    paths = put(tmp_path, "all.json", coco())
    assert not read("coco", MAP, paths).any()
    put(tmp_path, "all.json", coco(segmented(9, [np.ravel(SQUARE).tolist()])))
    assert read("coco", MAP, paths).any()


# YOLO


def test_polygons_of_yolo_are_fractions_of_the_image(tmp_path):
    text = "0 0 0 1 0 1 1 0 1\r\n\n1 0.25 0.5 0.5 0.5 0.5 1.01 0.25 1.01\n"
    expected = np.zeros(SIZE[::-1])
    expected[15:, 10:20] = 1
    found = read("yolo", YOLO, put(tmp_path, "a.txt", text))
    assert np.array_equal(found, expected)
    assert (read("yolo", YOLO, put(tmp_path, "a.txt", "")) == 255).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("car 0 0 1 1 0 1", "line 1 does not begin with the number of a class"),
        ("0 0 0 1 1 0 1\n0 0.5 0.5 0.1 0.1", "line 2 is a box"),
        ("0 0 0 1 1 0", "line 1: a polygon of '0' has an odd number"),
        ("0 0 0 1 1 0 1 0.3", "odd number"),
        ("0 0 0", "three points"),
        ("0", "cannot be read"),
        ("0 0 0 1 1 0 nan", "beyond"),
        ("0 0 0 1 1 0 inf", "beyond"),
        ("0 0 0 1 1 0 1e300", "beyond"),
        ("0 0 0 400 1 400 300", "three points between 0 and 1"),
        ("0 0 0 1 1 0 x", "line 1"),
        ("7 0 0 1 1 0 1", "the class 7 is not one"),
        ("99999999999999999999 0 0 1 1 0 1", "number of a class"),
        ("-1 0 0 1 1 0 1", "number of a class"),
        ("\u0663 0 0 1 1 0 1", "number of a class"),
    ],
)
def test_a_malformed_file_of_yolo_is_refused(tmp_path, text, reason):
    with pytest.raises(DataError, match=reason):
        read("yolo", YOLO, put(tmp_path, "a.txt", text))


# All of them


@pytest.mark.parametrize(
    ("encoding", "label_map"), [("labelme", MAP), ("coco", MAP), ("yolo", YOLO)]
)
def test_what_is_no_text_and_what_has_no_image_is_refused(tmp_path, encoding, label_map):
    label, image = put(tmp_path, "a.txt", "")
    label.write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        ENCODINGS.get(encoding)(label, label_map, image)
    with pytest.raises(DataError, match=r"[nN]o such file"):
        ENCODINGS.get(encoding)(tmp_path / "nowhere", label_map, image)


@pytest.mark.parametrize("encoding", ["labelme", "coco", "yolo"])
def test_more_than_can_be_drawn_is_refused_before_anything_is(tmp_path, encoding):
    size, times = (9000, 9000), 200
    everything = [[0, 0], [9000, 0], [0, 9000]]
    flat = np.ravel(everything)
    scene = {
        "labelme": labelme(*[shape("car", everything)] * times, imageHeight=9000, imageWidth=9000),
        "coco": coco(
            *[segmented(9, [flat.tolist()])] * times, images=[{"id": 7, "file_name": "a.png"}]
        ),
        "yolo": f"0 {' '.join(map(str, flat / 9000))}\n" * times,
    }[encoding]
    with pytest.raises(DataError, match="too many or too large"):
        read(encoding, YOLO if encoding == "yolo" else MAP, put(tmp_path, "a.json", scene, size))


def test_more_than_255_names(tmp_path):
    many = {0: "unlabeled"} | {number: f"n{number}" for number in range(1, 400)}
    label_map = LabelMap.from_ids(dict.fromkeys(many, 255), many)
    scene = labelme(shape("n300", SQUARE), shape("n299", [[0, 0], [2, 2]], "rectangle"))
    found = read("labelme", label_map, put(tmp_path, "a.json", scene))
    assert found[15, 15] == 300 and found[0, 0] == 299 and found[25, 35] == 0
