"""Copy the images and labels of a folder at half of their size, as the short studies use them.

    python docs/study/half.py FOLDER COPY

Images (.jpg) are averaged over 2x2 pixels and stored with quality 92; labels (.png) keep every
second pixel.
"""

import sys
from pathlib import Path

from PIL import Image
from PIL.Image import Resampling


def halve(folder: Path, copy: Path) -> None:
    """Write the halves of all images and labels in `folder` to `copy`."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png")):
        image, out = Image.open(path), copy / path.relative_to(folder)
        out.parent.mkdir(parents=True, exist_ok=True)
        size = image.width // 2, image.height // 2
        if path.suffix == ".jpg":
            image.resize(size, Resampling.BOX).save(out, quality=92)
        else:
            image.resize(size, Resampling.NEAREST).save(out)


if __name__ == "__main__":
    halve(*map(Path, sys.argv[1:]))
