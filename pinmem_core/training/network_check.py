"""Check that a backbone and a decoder compute what they describe, before a run trains them."""

import torch
from torch import Tensor

from pinmem_core.errors import ConfigError
from pinmem_core.models import Segmenter

_LARGEST_RATIO = 1.4
"""Largest ratio of the sides of a feature to those that its stride gives. It is above 1, because
patches of 14 pixels cannot have a stride of exactly 4."""


@torch.no_grad()
def require_consistent(segmenter: Segmenter) -> None:
    """Raise ConfigError if the features or logits of a small image have other shapes.

    Random numbers and the mode of the network stay as they are.

    Args:
        segmenter: Network on the CPU.
    """
    backbone, training = segmenter.backbone, segmenter.training
    multiple = backbone.size_multiple
    side = -(-2 * max(*backbone.strides, multiple, 32) // multiple) * multiple
    images = next(segmenter.parameters()).new_zeros(1, 3, side, side)
    segmenter.eval()
    with torch.random.fork_rng(devices=[]):
        features = segmenter.features(images)
        if problem := _odd_feature(features, backbone.channels, backbone.strides, side):
            raise ConfigError(
                f"the backbone '{segmenter.config.backbone}' is not as it describes itself: "
                f"{problem}.",
                "Correct its 'channels' and 'strides'.",
            )
        if problem := _odd_output(segmenter, images):
            raise ConfigError(f"the decoder '{segmenter.config.decoder}' {problem}.")
    segmenter.train(training)


def _odd_feature(
    features: list[Tensor], channels: list[int], strides: list[int], side: int
) -> str | None:
    if len(features) != len(channels):
        return f"it returns {len(features)} features instead of {len(channels)}"
    for feature, wanted, stride in zip(features, channels, strides, strict=True):
        if feature.ndim != 4 or feature.shape[1] != wanted:
            return f"a feature has the shape {tuple(feature.shape)} instead of {wanted} channels"
        ratio = feature.shape[-1] * stride / side
        if not 1 / _LARGEST_RATIO <= ratio <= _LARGEST_RATIO:
            actual = side / feature.shape[-1]
            return f"a feature of {wanted} channels has the stride {actual:.3g} instead of {stride}"
    return None


def _odd_output(segmenter: Segmenter, images: Tensor) -> str | None:
    decoder, classes = segmenter.decoder, segmenter.config.num_classes
    encoding = segmenter.encode(images)
    given = getattr(decoder, "dim", None)
    if encoding.feature.ndim != 4 or encoding.feature.shape[1] != given:
        return f"projects to the shape {tuple(encoding.feature.shape)}, but its 'dim' is {given}"
    output = segmenter.segment(encoding)
    if output.logits.ndim != 4 or output.logits.shape[1] != classes:
        shape = tuple(output.logits.shape)
        return f"predicts the shape {shape} instead of (N, {classes}, h, w) for {classes} classes"
    return None
