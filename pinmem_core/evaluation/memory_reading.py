"""Read and write weights of the memory for single images."""

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
from pinmem_core.models.decoders.base import resize
from pinmem_core.models.memory import CategoricalMemory
from pinmem_core.preparation import Sample

_LARGEST = 2**21
"""Maximum number of pixels of an image, that of Cityscapes images; larger images are reduced."""


@dataclass(frozen=True, eq=False)
class Reading:
    """An image with its classes, its read weights and its written slots.

    Attributes:
        id: Id of the sample.
        image: RGB image, (H, W, 3).
        truth: TrainIds, (H, W); 255 is ignored.
        prediction: Predicted trainIds, (H, W).
        weights: Read weight of each slot at each position of the feature, (K, h, w); weights of a
            position sum to 1.
        written: Slots after writing only this image into an empty memory, (K, D): the mean u of
            each class, of unit length; zeros for a class with fewer pixels than a feature position
            covers.
    """

    id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    weights: NDArray[np.float32]
    written: NDArray[np.float32]

    def weight_of(self, train_id: int) -> NDArray[np.float32]:
        """Return the read weight of a slot at each pixel, (H, W), in 0..1."""
        return self._at_pixels(self.weights[train_id : train_id + 1])[0].numpy()

    @cached_property
    def most_read(self) -> NDArray[np.uint8]:
        """Slot with the largest read weight at each pixel, (H, W)."""
        return self._at_pixels(self.weights).argmax(dim=0).to(torch.uint8).numpy()

    @property
    def labelled(self) -> int:
        """Number of labelled pixels."""
        return int((self.truth != IGNORE_INDEX).sum())

    @property
    def right(self) -> int:
        """Number of labelled pixels that read the slot of their true class most."""
        return int((self.most_read == self.truth).sum())

    def _at_pixels(self, weights: NDArray[np.float32]) -> Tensor:
        return resize(torch.from_numpy(weights)[None], self.truth.shape)[0]


@torch.inference_mode()
def read_memory(
    predictor: Predictor, sample: Sample, prediction: NDArray[np.uint8] | None = None
) -> Reading:
    """Return the read weights and written slots of the memory for a whole sample.

    Image, truth and prediction follow the protocol's view; above 2**21 pixels they are reduced.

    Args:
        predictor: Predictor of a network with memory.
        sample: Sample to analyze.
        prediction: TrainIds, (H, W), predicted before; None to predict the sample.

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
    """Return the slots (K, D) that a feature (1, D, h, w) writes.

    Classes with fewer than `least` pixels are ignored.
    """
    pixels = np.bincount(truth.ravel(), minlength=256)
    kept = np.where(pixels < least, IGNORE_INDEX, np.arange(256)).astype(np.uint8)
    labels = torch.from_numpy(kept[truth])[None].to(feature.device)
    return memory.write(feature, labels, torch.zeros_like(memory.slots))


def _reduced(pixels: NDArray[np.uint8], how: Image.Resampling) -> NDArray[np.uint8]:
    """Resize a picture to at most `_LARGEST` pixels, keeping its aspect ratio."""
    height, width = pixels.shape[:2]
    if height * width <= _LARGEST:
        return pixels
    scale = (_LARGEST / (height * width)) ** 0.5
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()
