"""Make 30 images of one's own in two folders, with five classes, from two drives of IDD-Lite.

    python docs/study/own/mycity.py IDD_LITE MYCITY NORTH_DRIVE SOUTH_DRIVE

The first drive becomes `north` and the second becomes `south`, with 15 images each at equal
distances. The labels are grouped into classes that no shipped dataset has.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"track": [0], "verge": [1], "vehicle": [3], "surroundings": [4, 5], "sky": [6]}
"""Labels of IDD-Lite by own class; living things (2) are left out, as 255."""
IMAGES = 15


def make(idd: Path, mycity: Path, drives: dict[str, str]) -> None:
    """Write images, labels and classes.txt to `mycity`."""
    own = np.full(256, 255, np.uint8)
    for number, labels in enumerate(CLASSES.values()):
        own[labels] = number
    for domain, drive in drives.items():
        paths = sorted((idd / "leftImg8bit/train" / drive).glob("*_image.jpg"))
        for path in [paths[i * len(paths) // IMAGES] for i in range(IMAGES)]:
            name = path.name.removesuffix("_image.jpg")
            label = idd / "gtFine/train" / drive / f"{name}_label.png"
            for kind in ("images", "labels"):
                (mycity / kind / domain).mkdir(parents=True, exist_ok=True)
            (mycity / "images" / domain / f"{name}.jpg").write_bytes(path.read_bytes())
            ids = Image.fromarray(own[np.array(Image.open(label))])
            ids.save(mycity / "labels" / domain / f"{name}.png")
    (mycity / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


if __name__ == "__main__":
    idd, mycity, north, south = sys.argv[1:]
    make(Path(idd), Path(mycity), {"north": north, "south": south})
