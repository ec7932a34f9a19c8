"""Smaller copies of images, for disks and loaders that the originals are too large for."""

from dataclasses import dataclass
from io import BytesIO
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.errors import ConfigError, unknown_name

Format = Literal["jpeg", "png", "webp"]
_SUFFIX = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}


@dataclass(frozen=True)
class Reencoding:
    """How images are written anew.

    Attributes:
        format: File format; png loses nothing.
        quality: Of jpeg and webp, 1 to 100.
        height: Taller images and their labels are shrunk to this; None keeps every size.

    Raises:
        ConfigError: A value is out of range.
    """

    format: Format
    quality: int = 95
    height: int | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise unknown_name("image format", self.format, get_args(Format))
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"the quality {self.quality} is not between 1 and 100.")
        if self.height is not None and self.height < 1:
            raise ConfigError(f"images cannot be {self.height} pixels high.")

    @property
    def suffix(self) -> str:
        """The file name suffix of this format."""
        return _SUFFIX[self.format]

    def image(self, pixels: NDArray[np.uint8]) -> bytes:
        """Return the file of an (H, W, 3) image, shrunk bicubically where it is too tall."""
        picture = Image.fromarray(pixels)
        picture = picture.resize(self._size(picture), Image.Resampling.BICUBIC)
        data = BytesIO()
        options = {} if self.format == "png" else {"quality": self.quality}
        picture.save(data, self.format, **options)
        return data.getvalue()

    def label(self, train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (H, W) trainIds at the size of the image, by nearest neighbour."""
        picture = Image.fromarray(train_ids)
        return np.asarray(picture.resize(self._size(picture), Image.Resampling.NEAREST))

    def _size(self, picture: Image.Image) -> tuple[int, int]:
        if self.height is None or picture.height <= self.height:
            return picture.size
        return max(1, round(picture.width * self.height / picture.height)), self.height
