"""A small real-looking set of images and its labels in the formats of labelling tools.

Streets with grass, a road, a sky and a few vehicles and people; the shapes of each image are known.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pinmem_core.data.catalog import read_card
from pinmem_core.data.locate import locate_raw_files
from pinmem_core.data.new_card import new_card
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import PreparedDataset

NAMES = ("lane", "meadow", "sky", "Vehicle", "person")
COLORS = ((90, 90, 100), (60, 140, 60), (120, 170, 230), (200, 40, 40), (230, 200, 60))
SIZE = (96, 64)


@dataclass(frozen=True)
class Scene:
    """An image, and its shapes as (number of the class, corners), later ones over earlier ones."""

    image: np.ndarray
    shapes: list[tuple[int, list[tuple[int, int]]]]

    @property
    def ids(self) -> np.ndarray:
        """The number of the class of each pixel; -1 outside of all shapes."""
        ids = np.full(SIZE[::-1], -1)
        for number, ((left, top), _, (right, bottom), _) in self.shapes:
            ids[max(top, 0) : bottom, max(left, 0) : right] = number
        return ids


def scene(seed: int) -> Scene:
    """Return a scene of rectangles; the upper left corner of each image has no label."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    horizon, left = rng.integers(20, 30), rng.integers(10, 40)
    boxes = [
        (2, (8, 0, width, horizon)),
        (1, (0, horizon, width, height)),
        (0, (left, horizon, left + 30, height)),
    ]
    for number in (3, 3, 4):
        x, y = rng.integers(0, width - 12), rng.integers(horizon, height - 10)
        boxes.append((number, (x, y, x + rng.integers(4, 12), y + rng.integers(4, 10))))
    image = Image.new("RGB", SIZE, (30, 30, 30))
    shapes = []
    for number, box in boxes:
        x0, y0, x1, y1 = map(int, box)
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=COLORS[number])
        shapes.append((number, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]))
    noise = rng.integers(-15, 16, (height, width, 3))
    return Scene((np.asarray(image) + noise).clip(0, 255).astype(np.uint8), shapes)


def image_bytes(pixels: np.ndarray, form: str = "png") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")


def scenes(
    domains: tuple[str, ...] = ("campus", "yard"), count: int = 5
) -> Iterator[tuple[str, str, Scene]]:
    """Yield the domain, the name and the scene of each image; names are unique."""
    for place, domain in enumerate(domains):
        for number in range(count):
            yield domain, f"{domain[0]}_{number:03}", scene(100 * place + number)


def write_images(folder: Path, pattern: str) -> dict[str, Scene]:
    """Write the images, and return the scenes by name."""
    written = {}
    for domain, name, one in scenes():
        path = folder / pattern.format(domain=domain, name=name)
        put(
            path,
            image_bytes(one.image, "jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else "png"),
        )
        written[name] = one
    return written


def labelme_of(one: Scene) -> dict:
    """Return the content of a JSON of labelme."""
    shapes = [
        {
            "label": NAMES[n],
            "points": [[x + 0.4, y + 0.4] for x, y in _inner(points)],
            "shape_type": "polygon",
        }
        for n, points in one.shapes
    ]
    sides = {"imageWidth": SIZE[0], "imageHeight": SIZE[1]}
    return {"version": "5.4.1", "shapes": shapes, "imageData": None, **sides}


def labelme(folder: Path) -> dict[str, Scene]:
    """Write images and labelme's JSON side by side, with a folder for each domain."""
    for domain, name, one in scenes():
        put(folder / domain / f"{name}.json", labelme_of(one))
    return write_images(folder, "{domain}/{name}.JPG")


def _inner(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the corner pixels of a rectangle, which labelme's own tool draws, too."""
    (x0, y0), _, (x1, y1), _ = points
    return [(x0, y0), (x1 - 1, y0), (x1 - 1, y1 - 1), (x0, y1 - 1)]


def coco_of(images: dict[str, Scene], suffix: str, *, rle: bool = False) -> dict:
    """Return the content of a JSON file for images, by path without suffix."""
    content: dict = {"info": {"year": 2026}, "licenses": [], "images": [], "annotations": []}
    content["categories"] = [
        {"id": 10 * number + 1, "name": name, "supercategory": "thing"}
        for number, name in enumerate(NAMES)
    ]
    for number, (name, one) in enumerate(images.items(), start=1):
        sides = {"width": SIZE[0], "height": SIZE[1]}
        content["images"].append({"id": number, "file_name": f"{name}{suffix}", **sides})
        for category, points in one.shapes:
            flat = [float(value) for point in points for value in point]
            segmentation: object = [flat]
            if rle:
                mask = np.zeros(SIZE[::-1], bool)
                (x0, y0), _, (x1, y1), _ = points
                mask[y0:y1, x0:x1] = True
                segmentation = {"size": [SIZE[1], SIZE[0]], "counts": _counts(mask)}
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": number,
                    "category_id": 10 * category + 1,
                    "segmentation": segmentation,
                    "iscrowd": int(rle),
                }
            )
    return content


def _counts(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F")
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    return [0] * bool(flat[0]) + np.diff(ends).tolist()


def coco(folder: Path, *, rle: bool = False) -> dict[str, Scene]:
    """Write one JSON for all images, as CVAT exports it."""
    written = write_images(folder, "images/{domain}/{name}.png")
    by_path = {f"{domain}/{name}": one for domain, name, one in scenes()}
    put(folder / "annotations" / "instances_default.json", coco_of(by_path, ".png", rle=rle))
    return written


def coco_rle(folder: Path) -> dict[str, Scene]:
    """Write one JSON with uncompressed run lengths."""
    return coco(folder, rle=True)


def roboflow(folder: Path) -> dict[str, Scene]:
    """Write a JSON into the folder of each split, with a category that nothing belongs to."""
    by_split: dict[str, dict[str, Scene]] = {"train": {}, "valid": {}}
    for _, name, one in scenes():
        by_split["valid" if name.endswith(("3", "4")) else "train"][name] = one
    for split, images in by_split.items():
        content = coco_of(images, ".jpg")
        content["categories"].insert(0, {"id": 0, "name": "street-parts", "supercategory": "none"})
        put(folder / split / "_annotations.coco.json", content)
        for name, one in images.items():
            put(folder / split / f"{name}.jpg", image_bytes(one.image, "jpeg"))
    return {name: one for images in by_split.values() for name, one in images.items()}


def coco_splits(folder: Path) -> dict[str, Scene]:
    """Write a JSON for each split, one for both, and one of boxes; the images are in one folder."""
    written = write_images(folder, "images/{name}.png")
    val = {name: one for name, one in written.items() if name.endswith("4")}
    train = {name: one for name, one in written.items() if name not in val}
    for split, members in (("train", train), ("val", val), ("trainval", written)):
        put(folder / "annotations" / f"instances_{split}.json", coco_of(members, ".png"))
    other = coco_of(written, ".png")
    put(folder / "annotations" / "captions_train.json", {**other, "categories": []})
    return written


def segments_of(one: Scene, number: int) -> tuple[bytes, list[dict]]:
    """Return a panoptic PNG, and its segments; `number` makes their ids differ between images."""
    segments = np.where(one.ids < 0, 0, one.ids * 7000 + number)
    colors = np.stack([segments % 256, segments // 256 % 256, segments >> 16], axis=2)
    info = [
        {"id": int(s), "category_id": 10 * int((s - number) // 7000) + 1, "area": 1}
        for s in np.unique(segments)
        if s
    ]
    return image_bytes(colors.astype(np.uint8)), info


def panoptic(folder: Path) -> dict[str, Scene]:
    """Write COCO's panoptic format: PNG files of segments, and their categories in JSON."""
    written = write_images(folder, "images/{name}.jpg")
    content = coco_of(written, ".jpg")
    annotations = []
    for number, (name, one) in enumerate(written.items(), start=1):
        png, info = segments_of(one, number)
        put(folder / "panoptic_train" / f"{name}.png", png)
        annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": info})
    put(folder / "annotations" / "panoptic_train.json", {**content, "annotations": annotations})
    return written


def voc(folder: Path) -> dict[str, Scene]:
    """Write masks of colours with VOC's palette, and CVAT's labelmap.txt."""
    written = write_images(folder, "JPEGImages/{name}.jpg")
    palette = np.array([(0, 0, 0), *((50 * n, 255 - 40 * n, 128) for n in range(len(NAMES)))])
    lines = [
        f"{name}:{','.join(map(str, color))}::"
        for name, color in zip(("void", *NAMES), palette.tolist(), strict=True)
    ]
    put(folder / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]))
    for number, (name, one) in enumerate(written.items()):
        mask = Image.fromarray(palette[one.ids + 1].astype(np.uint8))
        if number % 2:
            mask = mask.quantize(8, dither=Image.Dither.NONE)
        data = io.BytesIO()
        mask.save(data, "png")
        put(folder / "SegmentationClass" / f"{name}.png", data.getvalue())
    return written


def yolo_of(one: Scene) -> str:
    """Return the content of a text of YOLO."""
    lines = [
        " ".join([str(n), *(f"{x / SIZE[0]:.6f} {y / SIZE[1]:.6f}" for x, y in points)])
        for n, points in one.shapes
    ]
    return "\n".join(lines) + "\n"


def yolo(folder: Path) -> dict[str, Scene]:
    """Write a text of polygons for each image, and the names in data.yaml."""
    written = write_images(folder, "images/{domain}/{name}.Jpeg")
    for domain, name, one in scenes():
        put(folder / "labels" / domain / f"{name}.txt", yolo_of(one))
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(NAMES))
    put(folder / "data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}\n")
    return written


def parquet(folder: Path, *, is_struct: bool = True, in_features: bool = True) -> dict[str, Scene]:
    """Write a parquet file for each domain and split, with the names of the classes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: dict[tuple[str, str], list[tuple[str, Scene]]] = {}
    for domain, name, one in scenes():
        split = "validation" if name.endswith("4") else "train"
        rows.setdefault((domain, split), []).append((name, one))
    lists = {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": ["none", *NAMES]}}
    scene_kind = {"_type": "ClassLabel", "names": ["indoors", "outdoors"]}
    image = {"_type": "Image"}
    features = {"pixel_values": image, "label": image, "scene": scene_kind, "present": lists}
    metadata = {"huggingface": json.dumps({"info": {"features": features if in_features else {}}})}
    written = {}
    for (domain, split), members in rows.items():
        stem = f"{split}-00000-of-00001"
        columns: dict[str, list] = {"scene": [1] * len(members), "pixel_values": [], "label": []}
        for number, (_, one) in enumerate(members):
            mask = np.where(one.ids < 0, 255, one.ids + 1).astype(np.uint8)
            form = "jpeg" if number else "png"
            for column, content in (
                ("pixel_values", image_bytes(one.image, form)),
                ("label", image_bytes(mask)),
            ):
                cell = {"bytes": content, "path": None} if is_struct else content
                columns[column].append(cell)
            written[f"{domain}_{split}_{stem}_{number:06}"] = one
        path = folder / domain / "data" / f"{stem}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    if not in_features:
        put(folder / "id2label.json", {str(n): name for n, name in enumerate(("none", *NAMES))})
    return written


def parquet_of_bytes(folder: Path) -> dict[str, Scene]:
    """Write plain bytes, and the names of the classes as models have them."""
    return parquet(folder, is_struct=False, in_features=False)


def prepared(folder: Path, name: str = "mine") -> PreparedDataset:
    """Draft a card for a folder, and prepare its data by that card, without any change."""
    path = folder.parent / f"{name}.yaml"
    path.write_text(new_card(folder, name), encoding="utf-8")
    return prepared_by(path, folder)


def prepared_by(path: Path, folder: Path) -> PreparedDataset:
    """Prepare the data of a folder by the card at `path`."""
    card = read_card(path)
    return prepare(card, locate_raw_files(card, [folder]))


FORMATS = {
    "labelme": labelme,
    "COCO": coco,
    "COCO, run lengths": coco_rle,
    "COCO, a JSON for each split": roboflow,
    "COCO, splits of one folder": coco_splits,
    "COCO panoptic": panoptic,
    "VOC masks": voc,
    "YOLO": yolo,
    "parquet": parquet,
    "parquet, plain bytes": parquet_of_bytes,
}
"""Functions that write the set into a folder and return the scene of each sample by its name."""
