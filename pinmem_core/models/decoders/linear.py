"""A linear decoder, as for linear probes of pretrained backbones."""

from torch import Tensor, nn

from pinmem_core.models.decoders.base import Decoder, initialize


class Linear(Decoder):
    """Batch norm and a 1x1 convolution over the coarsest feature, without auxiliary head.

    The memory reads the normalised feature.

    Args:
        channels: Channels of the features; the last is `dim`.
        strides: Strides of the features.
        dim: Ignored: the feature for the memory has the channels of the backbone.
        num_classes: Number of classes, K.
    """

    auxiliary = False

    def __init__(self, channels: list[int], strides: list[int], dim: int, num_classes: int) -> None:
        super().__init__()
        self.dim = channels[-1]
        self.norm = nn.BatchNorm2d(self.dim)
        self.classifier = nn.Conv2d(self.dim, num_classes, 1)
        initialize(self)

    def project(self, features: list[Tensor]) -> Tensor:
        """Return the normalised coarsest feature."""
        normalised: Tensor = self.norm(features[-1])
        return normalised

    def decode(self, refined: Tensor, features: list[Tensor]) -> Tensor:
        """Return logits at the resolution of `refined`."""
        logits: Tensor = self.classifier(refined)
        return logits


DECODERS = {"linear": Linear}
