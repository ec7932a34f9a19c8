"""Small datasets in the layouts, encodings and archives of the published ones.

Every `Case` says which files lie in which archive and what each sample must become; the expected
trainIds come from the published label tables in `facts/label_tables.json`, not from the cards.
"""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rar_writer import Entry, rar4

FACTS = Path(__file__).parent / "facts"
TABLES = json.loads((FACTS / "label_tables.json").read_text())
IDD_NAMES = (FACTS / "idd_names.txt").read_text().splitlines()
"""The labels of IDD by id (AutoNUE's `anue_labels.py`)."""
WIDTH, HEIGHT = 27, 19

Files = dict[str, bytes]


@dataclass
class Case:
    dataset: str
    label_map: str | None
    archives: dict[str, Files]
    samples: dict[str, tuple[str, str, np.ndarray]]  # id -> split, domain, trainIds
    excluded: dict[str, str] = field(default_factory=dict)  # end of the path -> rule
    layout: str = ""

    def write(self, folder: Path) -> Path:
        folder.mkdir()
        for name, files in self.archives.items():
            _write_archive(folder / name, files)
        return folder


def _write_archive(path: Path, files: Files) -> None:
    if path.suffix == ".rar":
        path.write_bytes(rar4(*(Entry(name, data) for name, data in files.items())))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def table(dataset: str, label_map: str) -> dict[int, int]:
    return {int(raw): train_id for raw, train_id in TABLES[dataset][label_map].items()}


def raw_ids(ids: Mapping[int, int], seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)):
    """Return an (H, W) label in which every raw id occurs."""
    rng = np.random.default_rng(seed)
    values = np.resize(np.array(sorted(ids)), size[0] * size[1])
    return rng.permutation(values).reshape(size[1], size[0])


def translated(raw: np.ndarray, ids: Mapping[int, int]) -> np.ndarray:
    return np.array([[ids[int(value)] for value in row] for row in raw], np.uint8)


def picture(seed: int, form: str = "png", size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    rng = np.random.default_rng([7, seed])
    return _encoded(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8), form)


def grey(raw: np.ndarray) -> bytes:
    return _encoded(raw.astype(np.uint8), "png")


def palette(raw: np.ndarray) -> bytes:
    image = Image.fromarray(raw.astype(np.uint8))
    image.putpalette([(index * 37 + shift) % 256 for index in range(256) for shift in (0, 85, 170)])
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue()


def _encoded(pixels: np.ndarray, form: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


def rgb16(raw: np.ndarray, seed: int = 0) -> bytes:
    """Return a 16-bit RGB PNG: class in red, instance ids up to 976 in green, filters mixed."""
    rng = np.random.default_rng([9, seed])
    pixels = np.zeros((*raw.shape, 3), dtype=">u2")
    pixels[..., 0] = raw
    pixels[..., 1] = rng.integers(0, 977, raw.shape)
    rows, above = b"", np.zeros(raw.shape[1] * 6, np.int64)
    for number, row in enumerate(pixels):
        line = np.frombuffer(row.tobytes(), np.uint8).astype(np.int64)
        left = np.concatenate([np.zeros(6, np.int64), line[:-6]])
        corner = np.concatenate([np.zeros(6, np.int64), above[:-6]])
        guesses = [
            np.zeros_like(line),
            left,
            above,
            (left + above) // 2,
            _paeth(left, above, corner),
        ]
        kind = number % 5
        rows += bytes([kind]) + ((line - guesses[kind]) % 256).astype(np.uint8).tobytes()
        above = line
    height, width = raw.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    estimate = left + above - corner
    to_left, to_above, to_corner = (abs(estimate - x) for x in (left, above, corner))
    best = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, best)


def gtav(label_map: str | None = None) -> Case:
    ids = table("gtav", label_map or "ids")
    raws = {f"{n:05}": raw_ids(ids, n, (WIDTH + n % 3, HEIGHT)) for n in (1, 22, 11)}
    images = {f"images/{k}.png": picture(int(k), size=raw.shape[::-1]) for k, raw in raws.items()}
    labels = {f"labels/{k}.png": palette(raw) for k, raw in raws.items()}
    any_raw = raw_ids(ids, 0)
    spoilt = {
        "00002.png": ("other size", palette(any_raw[:-2])),
        "00003.png": ("single value", palette(np.zeros_like(any_raw))),
        "00004.png": ("unknown value", palette(np.where(any_raw == 7, 99, any_raw))),
        "00005.png": ("unreadable", palette(any_raw)[:-30]),
        "12160.png": ("known defect", palette(any_raw)),
        "24967.png": ("not listed", palette(any_raw)),
    }
    for name, (_, data) in spoilt.items():
        images[f"images/{name}"], labels[f"labels/{name}"] = picture(5), data
    labels["labels/00006.png"] = palette(any_raw)
    images["images/00007.png"] = picture(7)
    splits = {"00001": "train", "00022": "val", "00011": "test"}
    return Case(
        "gtav",
        label_map,
        {"01_images.zip": images, "01_labels.zip": labels},
        {k: (splits[k], "gtav", translated(raw, ids)) for k, raw in raws.items()},
        {
            **{name: rule for name, (rule, _) in spoilt.items()},
            "labels/00006.png": "missing partner",
            "images/00007.png": "missing partner",
        },
    )


def gtav_robustnet() -> Case:
    ids = table("gtav", "ids")
    files, samples = {}, {}
    for folder, split, frame in (
        ("train", "train", "00001"),
        ("valid", "val", "00022"),
        ("test", "test", "00011"),
    ):
        raw = raw_ids(ids, int(frame))
        files[f"GTAV/images/{folder}/part/{frame}.png"] = picture(int(frame))
        files[f"GTAV/labels/{folder}/part/{frame}.png"] = palette(raw)
        samples[frame] = (split, "gtav", translated(raw, ids))
    return Case("gtav", None, {"01_images.zip": files}, samples, layout="RobustNet")


def synthia() -> Case:
    ids = table("synthia", "ids")
    files: Files = {"RAND_CITYSCAPES/README.txt": b"first channel: class"}
    samples = {}
    for frame, split in (("0000000", "val"), ("0000001", "train")):
        raw = raw_ids(ids, int(frame))
        files[f"RAND_CITYSCAPES/RGB/{frame}.png"] = picture(int(frame))
        files[f"RAND_CITYSCAPES/GT/LABELS/{frame}.png"] = rgb16(raw, int(frame))
        files[f"RAND_CITYSCAPES/GT/COLOR/{frame}.png"] = picture(3)
        samples[frame] = (split, "synthia", translated(raw, ids))
    files["RAND_CITYSCAPES/RGB/0000002.png"] = picture(2)
    files["RAND_CITYSCAPES/GT/LABELS/0000002.png"] = picture(2)  # rewritten with 8 bits
    excluded = {"LABELS/0000002.png": "unreadable"}
    return Case("synthia", None, {"SYNTHIA_RAND_CITYSCAPES.rar": files}, samples, excluded)


def cityscapes() -> Case:
    ids = table("cityscapes", "cityscapes-ids")
    images: Files = {"README": b"", "license.txt": b""}
    labels: Files = {"README": b"", "license.txt": b""}
    samples = {}
    for split, city in (("train", "aachen"), ("val", "munster"), ("test", "berlin")):
        stem, raw = f"{city}_000000_000019", raw_ids(ids, len(city))
        images[f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png"] = picture(1)
        folder = f"gtFine/{split}/{city}/{stem}_gtFine"
        labels[f"{folder}_labelIds.png"] = grey(raw)
        labels[f"{folder}_color.png"] = picture(2)
        labels[f"{folder}_instanceIds.png"] = grey(raw)
        if split != "test":
            samples[stem] = (split, "cityscapes", translated(raw, ids))
    archives = {"leftImg8bit_trainvaltest.zip": images, "gtFine_trainvaltest.zip": labels}
    return Case("cityscapes", None, archives, samples)


def _train_ids() -> dict[int, int]:
    return {**{n: n for n in range(19)}, 255: 255}


def bdd100k() -> Case:
    archives: dict[str, Files] = {"bdd100k_sem_seg_labels_trainval.zip": {}}
    samples = {}
    for split, name in (("train", "0a0a0b1a-7c39d841"), ("val", "7d06fefd-f7be05a6")):
        raw = raw_ids(_train_ids(), len(split))
        image = {f"bdd100k/images/10k/{split}/{name}.jpg": picture(1, "jpeg")}
        archives[f"10k_images_{split}.zip"] = image
        folder = "bdd100k/labels/sem_seg"
        labels = archives["bdd100k_sem_seg_labels_trainval.zip"]
        labels[f"{folder}/masks/{split}/{name}.png"] = grey(raw)
        labels[f"{folder}/colormaps/{split}/{name}.png"] = picture(1)
        samples[name] = (split, "bdd100k", raw.astype(np.uint8))
    return Case("bdd100k", None, archives, samples)


def bdd100k_old() -> Case:
    files, samples = {}, {}
    for split, name in (("train", "0a0a0b1a-7c39d841"), ("val", "7d06fefd-f7be05a6")):
        raw = raw_ids(_train_ids(), len(split))
        files[f"bdd100k/seg/images/{split}/{name}.jpg"] = picture(1, "jpeg")
        files[f"bdd100k/seg/labels/{split}/{name}_train_id.png"] = grey(raw)
        files[f"bdd100k/seg/color_labels/{split}/{name}_train_color.png"] = picture(1)
        samples[name] = (split, "bdd100k", raw.astype(np.uint8))
    return Case("bdd100k", None, {"10k_images_train.zip": files}, samples)


def mapillary(label_map: str | None, versions: tuple[str, ...]) -> Case:
    """Layout A has bare `labels`, layout B a folder for each version."""
    ids = {"v1.2": table("mapillary", "pinmem"), "v2.0": table("mapillary", "v2.0")}
    files, samples = {}, {}
    used = "v2.0" if versions == ("v2.0",) or label_map == "v2.0" else "v1.2"
    expected = table("mapillary", label_map) if label_map else ids[used]
    for number, (folder, split) in enumerate((("training", "train"), ("validation", "val"))):
        key, size = f"_HW{number}pd9-Aa", (31 + number, 23 - number)  # many cameras, many sizes
        files[f"{folder}/images/{key}.jpg"] = picture(number, "jpeg", size)
        for version in versions:
            raw = raw_ids(ids[version], number, size)
            inner = f"{version}/labels" if len(versions) > 1 else "labels"
            files[f"{folder}/{inner}/{key}.png"] = palette(raw)
            if version == used:
                samples[key] = (split, "mapillary", translated(raw, expected))
    files["testing/images/abc.jpg"] = picture(9, "jpeg")
    name = f"mapillary-vistas-dataset_public_{versions[-1]}.zip"
    return Case("mapillary", label_map, {name: files}, samples)


def idd() -> Case:
    names = dict(enumerate(IDD_NAMES))
    ids = table("idd", "ids")
    archives: dict[str, Files] = {}
    samples = {}
    for archive, top, drive, split, form in (
        ("idd-segmentation.tar.gz", "IDD_Segmentation", "201", "train", "png"),
        ("idd-20k-II.tar.gz", "idd20kII", "503", "val", "jpg"),
    ):
        scene, raw = polygons(names, int(drive))
        stem = f"frame{drive}"
        archives[archive] = {
            f"{top}/leftImg8bit/{split}/{drive}/{stem}_leftImg8bit.{form}": picture(
                1, "jpeg" if form == "jpg" else form, (60, 50)
            ),
            f"{top}/gtFine/{split}/{drive}/{stem}_gtFine_polygons.json": scene,
            f"{top}/leftImg8bit/test/{drive}/{stem}_leftImg8bit.{form}": picture(2),
        }
        samples[f"{drive}_{stem}"] = (split, "idd", translated(raw, ids))
    return Case("idd", None, archives, samples)


def idd_lite() -> Case:
    files: Files = {"idd20k_lite/leftImg8bit/test/9/f1_image.jpg": picture(3, "jpeg")}
    samples = {}
    drives = ("train", "201"), ("train", "202"), ("train", "203"), ("val", "503")
    for number, (split, drive) in enumerate(drives):
        raw = raw_ids({**dict(enumerate(range(7))), 255: 255}, number)
        place = "idd20k_lite/{}/" + f"{split}/{drive}/f1_"
        files[f"{place.format('leftImg8bit')}image.jpg"] = picture(number, "jpeg")
        files[f"{place.format('gtFine')}label.png"] = grey(raw)
        files[f"{place.format('gtFine')}inst_label.png"] = grey(raw)
        samples[f"{drive}_f1"] = (split, "idd-lite", raw)
    return Case("idd-lite", None, {"idd-lite.tar.gz": files}, samples)


def polygons(names: Mapping[int, str], seed: int) -> tuple[bytes, np.ndarray]:
    """Return a polygon file of rectangles, one for each label at least, and the ids it draws."""
    rng = np.random.default_rng(seed)
    unlabeled = next(number for number, name in names.items() if name == "unlabeled")
    raw = np.full((50, 60), unlabeled)
    objects = []
    for number, name in names.items():
        x, y = (int(v) for v in rng.integers(0, 45, 2))
        w, h = (int(v) for v in rng.integers(2, 14, 2))
        corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
        label = f"{name}group" if name in ("car", "person") else name
        objects.append({"label": label, "polygon": corners})
        raw[y : y + h + 1, x : x + w + 1] = number
    objects.append({"label": "sky", "polygon": [[0, 0], [59, 0], [59, 49]], "deleted": 1})
    objects.append({"label": "sky", "polygon": [[0, 0], [59, 49]]})
    return json.dumps({"imgHeight": 50, "imgWidth": 60, "objects": objects}).encode(), raw


def _train_id_pairs(
    dataset: str,
    samples: Mapping[str, tuple[str, str]],
    paths: Callable[[str], tuple[str, str, str, str]],
) -> Case:
    """Return a case whose labels are trainIds; `paths` gives archive and path of both files."""
    archives: dict[str, Files] = {}
    expected = {}
    for number, (name, (split, domain)) in enumerate(samples.items()):
        raw = raw_ids(_train_ids(), number)
        image_archive, image, label_archive, label = paths(name)
        archives.setdefault(image_archive, {})[image] = picture(number)
        archives.setdefault(label_archive, {})[label] = grey(raw)
        expected[name] = (split, domain, raw.astype(np.uint8))
    return Case(dataset, None, archives, expected)


def acdc() -> Case:
    samples = {
        f"GOPR047{n}_frame_00000{n}": (split, condition)
        for n, (split, condition) in enumerate(
            [("train", "fog"), ("val", "night"), ("train", "rain"), ("val", "snow")]
        )
    }

    def paths(stem: str) -> tuple[str, str, str, str]:
        split, condition = samples[stem]
        folder = f"{condition}/{split}/{stem.partition('_')[0]}"
        image = f"rgb_anon/{folder}/{stem}_rgb_anon.png"
        label = f"gt/{folder}/{stem}_gt_labelTrainIds.png"
        return "rgb_anon_trainvaltest.zip", image, "gt_trainval.zip", label

    case = _train_id_pairs("acdc", samples, paths)
    rgb = case.archives["rgb_anon_trainvaltest.zip"]
    rgb["rgb_anon/fog/train_ref/GOPR0470/GOPR0470_frame_000000_rgb_ref_anon.png"] = picture(8)
    rgb["rgb_anon/fog/test/GOPR0470/GOPR0470_frame_000009_rgb_anon.png"] = picture(9)
    return case


def dark_zurich() -> Case:
    samples = {"GOPR0356_frame_000321": ("val", "dark-zurich")}

    def paths(stem: str) -> tuple[str, str, str, str]:
        image = f"rgb_anon/val/night/GOPR0356/{stem}_rgb_anon.png"
        label = f"gt/val/night/GOPR0356/{stem}_gt_labelTrainIds.png"
        return "Dark_Zurich_val_anon.zip", image, "Dark_Zurich_val_anon.zip", label

    return _train_id_pairs("dark-zurich", samples, paths)


def muses() -> Case:
    samples = {
        "REC0006_frame_040226": ("train", "clear-day"),
        "REC0007_frame_040227": ("val", "rain-night"),
    }

    def paths(stem: str) -> tuple[str, str, str, str]:
        split, domain = samples[stem]
        folder = f"{split}/{domain.replace('-', '/')}"
        image = f"frame_camera/{folder}/{stem}_frame_camera.png"
        label = f"gt_semantic/{folder}/{stem}_gt_labelTrainIds.png"
        return "frame_camera_trainvaltest.zip", image, "gt_semantic_trainval.zip", label

    return _train_id_pairs("muses", samples, paths)


def kitti() -> Case:
    ids = table("cityscapes", "cityscapes-ids")
    files, samples = {}, {}
    for number in range(5):
        name, raw = f"{number:06}_10", raw_ids(ids, number, (37, 11 + number))
        files[f"training/image_2/{name}.png"] = picture(number, size=raw.shape[::-1])
        files[f"training/semantic/{name}.png"] = grey(raw)
        files[f"training/semantic_rgb/{name}.png"] = picture(1)
        files[f"testing/image_2/{name}.png"] = picture(1)
        samples[name] = ("val" if number == 4 else "train", "kitti", translated(raw, ids))
    return Case("kitti", None, {"data_semantics.zip": files}, samples)


def wilddash2() -> Case:
    ids = table("wilddash2", "ids")
    files, samples = {}, {}
    for number in range(5):
        name, raw = f"de0000_0000{number}", raw_ids(ids, number)
        files[f"images/{name}.jpg"] = picture(number, "jpeg")
        files[f"labels/{name}.png"] = grey(raw)
        samples[name] = ("val" if number == 4 else "train", "wilddash2", translated(raw, ids))
    return Case("wilddash2", None, {"wd_public_02.zip": files}, samples)


def camvid() -> Case:
    colors = {
        tuple(int(part) for part in key.split(",")): train_id
        for key, train_id in TABLES["camvid"]["colors"].items()
    }
    listed = list(colors)
    raw = raw_ids(dict(enumerate(colors.values())), 1)
    pixels = np.array(listed, np.uint8)[raw]
    expected = translated(raw, dict(enumerate(colors.values())))
    archives = {
        "701_StillsRaw_full.zip": {"701_StillsRaw_full/0001TP_006690.png": picture(1)},
        "LabeledApproved_full.zip": {
            "LabeledApproved_full/0001TP_006690_L.png": _encoded(pixels, "png")
        },
    }
    return Case("camvid", None, archives, {"0001TP_006690": ("train", "0001TP", expected)})


CASES: dict[str, Callable[[], Case]] = {
    "gtav": gtav,
    "gtav by colour": lambda: gtav("pinmem"),
    "gtav in RobustNet's folders": gtav_robustnet,
    "synthia": synthia,
    "cityscapes": cityscapes,
    "bdd100k": bdd100k,
    "bdd100k of 2018": bdd100k_old,
    "mapillary 1.2": lambda: mapillary(None, ("v1.2",)),
    "mapillary 1.2 as Rein reads it": lambda: mapillary("rein", ("v1.2",)),
    "mapillary 2.0, both versions": lambda: mapillary(None, ("v1.2", "v2.0")),
    "mapillary 2.0, its own labels": lambda: mapillary("v2.0", ("v1.2", "v2.0")),
    "mapillary 2.0 in bare folders": lambda: mapillary(None, ("v2.0",)),
    "idd": idd,
    "idd-lite": idd_lite,
    "acdc": acdc,
    "kitti": kitti,
    "dark-zurich": dark_zurich,
    "wilddash2": wilddash2,
    "muses": muses,
    "camvid": camvid,
}
