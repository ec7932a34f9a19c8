"""What a network reads from its memory for an image, and what the image would write into it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pinmem_core.errors import ConfigError
from pinmem_core.inference import Predictor
from pinmem_core.labels import IGNORE_INDEX
from pinmem_core.loading.augmentation import normalize
from pinmem_core.model.head import resize
from pinmem_core.model.memory import CategoricalMemory
from pinmem_core.preparation import Sample

_LARGEST = 2**21
"""Pixels of an image that is looked at whole: those of Cityscapes. Larger ones are reduced."""


@dataclass(frozen=True, eq=False)
class Reading:
    """An image, its classes, and the memory's part in them.

    Attributes:
        id: Of the sample.
        image: (H, W, 3) RGB.
        truth: (H, W) trainIds, 255 = ignore.
        prediction: (H, W) trainIds.
        weights: (K, h, w), how much each position of the feature reads of each slot; they sum to 1.
        written: (K, D), the memory that writing this image alone into an empty one would make:
            each class's mean u, of unit length, or zeros for a class of fewer pixels than a
            position has.
    """

    id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    weights: NDArray[np.float32]
    written: NDArray[np.float32]

    def weight_of(self, train_id: int) -> NDArray[np.float32]:
        """Return how much each pixel (H, W) reads of a slot, in 0..1."""
        return self._at_pixels(self.weights[train_id : train_id + 1])[0].numpy()

    @cached_property
    def most_read(self) -> NDArray[np.uint8]:
        """(H, W) the slot that each pixel reads most."""
        return self._at_pixels(self.weights).argmax(dim=0).to(torch.uint8).numpy()

    @property
    def labelled(self) -> int:
        """How many pixels are labelled."""
        return int((self.truth != IGNORE_INDEX).sum())

    @property
    def right(self) -> int:
        """How many labelled pixels read the slot of their own class most."""
        return int((self.most_read == self.truth).sum())

    def _at_pixels(self, weights: NDArray[np.float32]) -> Tensor:
        return resize(torch.from_numpy(weights)[None], self.truth.shape)[0]


@torch.inference_mode()
def read_memory(
    predictor: Predictor, sample: Sample, prediction: NDArray[np.uint8] | None = None
) -> Reading:
    """Return what a network reads from its memory for a sample, seen whole.

    Image, truth and prediction are the protocol's; where they have more than 2 megapixels, they are
    reduced to that.

    Args:
        predictor: Of a network with memory.
        sample: What to look at.
        prediction: (H, W) trainIds that the predictor has found; None to predict the sample.

    Raises:
        ConfigError: The network has no memory.
        DataError: A file cannot be read.
    """
    segmenter, memory = predictor.segmenter, predictor.segmenter.memory
    if memory is None:
        raise ConfigError("the network has no memory.", "Load one that was trained with a memory.")
    image, truth = predictor.protocol.view_of(*sample.read())
    if prediction is None:
        prediction = predictor.predict(image)
    prediction = _reduced(prediction, Image.Resampling.NEAREST)
    image = _reduced(image, Image.Resampling.BICUBIC)
    truth = _reduced(truth, Image.Resampling.NEAREST)
    seen = torch.tensor(image, device=predictor.device).permute(2, 0, 1)[None]
    feature = segmenter.encode(normalize(seen)).feature
    _, scores = memory.read(feature, memory.slots)
    weights = memory.attention(scores)[0]
    written = _written(memory, feature, truth, segmenter.config.output_stride**2)
    return Reading(sample.id, image, truth, prediction, _array(weights), _array(written))


def _written(
    memory: CategoricalMemory, feature: Tensor, truth: NDArray[np.uint8], least: int
) -> Tensor:
    """Return what a feature (1, D, h, w) writes of each class that has at least so many pixels."""
    pixels = np.bincount(truth.ravel(), minlength=256)
    kept = np.where(pixels < least, IGNORE_INDEX, np.arange(256)).astype(np.uint8)
    labels = torch.from_numpy(kept[truth])[None].to(feature.device)
    return memory.write(feature, labels, torch.zeros_like(memory.slots))


def _reduced(pixels: NDArray[np.uint8], how: Image.Resampling) -> NDArray[np.uint8]:
    """Return a picture of at most `_LARGEST` pixels, its shape kept."""
    height, width = pixels.shape[:2]
    if height * width <= _LARGEST:
        return pixels
    scale = (_LARGEST / (height * width)) ** 0.5
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()
