"""Semantic clustering (SPC-Net, Huang et al., CVPR 2023): classify by the nearest class basis.

A basis is a unit vector for a class in a source domain. It replaces the weights of the classifier.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pinmem_core.errors import ConfigError
from pinmem_core.models.adapters.base import Adapter
from pinmem_core.models.backbones.base import Backbone
from pinmem_core.models.decoders.base import Decoder


class ClassBases(nn.Module):
    """Logits of class c: the largest cosine of a pixel and the bases of c in all domains.

    Args:
        classes: Number of classes, K.
        domains: Number of domains, M.
        dim: Channels of the pixels' features, D.
        momentum: Weight of the old basis in an update.
        temperature: Divisor of the cosines.

    Attributes:
        bases: Unit vectors, (K, M, D); a class has zeros before its first pixel in a domain.
        embedding: Features of the last training images, of unit length over D, (N, D, h, w).
    """

    bases: Tensor

    def __init__(
        self, classes: int, domains: int, dim: int, momentum: float, temperature: float
    ) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("bases", torch.zeros(classes, domains, dim))
        self.embedding: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K, h, w) of features (N, D, h, w), not in half precision."""
        with torch.autocast(features.device.type, enabled=False):
            values = features.to(torch.promote_types(features.dtype, torch.float32))
            unit = F.normalize(values, dim=1)
            self.embedding = unit if self.training else None
            flat = self.bases.to(unit).flatten(0, 1)
            cosines = torch.einsum("ndhw,kd->nkhw", unit, flat)
            return cosines.unflatten(1, self.bases.shape[:2]).amax(dim=2) / self.temperature

    @torch.no_grad()
    def update(self, centres: Tensor, counts: Tensor) -> None:
        """Move the bases of the classes that a batch shows to the centres of their pixels.

        Args:
            centres: Unit vectors, (K, M, D).
            counts: Pixels of each class and domain, (K, M).
        """
        known = self.bases.any(dim=2, keepdim=True)
        momentum = self.momentum * known.to(centres)
        moved = F.normalize(momentum * self.bases + (1 - momentum) * centres, dim=2)
        self.bases.copy_(torch.where(counts[..., None] > 0, moved, self.bases))


class ClassBasesAdapter(Adapter):
    """Class bases in place of the decoder's classifier; a method updates them."""

    domains: int = Field(2, ge=1)
    """Number of source domains."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Weight of the old basis in an update."""
    temperature: float = Field(1.0, gt=0)
    """Divisor of the cosines in the softmax; the paper's text has none."""

    def insert(self, backbone: Backbone) -> None:
        """Leave the backbone unchanged."""

    def insert_into_decoder(self, decoder: Decoder, backbone: Backbone) -> None:
        """Replace the decoder's last layer, a 1x1 convolution."""
        classifier = getattr(decoder, "classifier", None)
        if isinstance(classifier, nn.Sequential):  # dropout comes before the convolution
            classifier = classifier[-1]
        if not isinstance(classifier, nn.Conv2d) or classifier.kernel_size != (1, 1):
            raise ConfigError(
                "class bases need a decoder that ends in a 1x1 convolution to the classes.",
                "Use '--set model.decoder=deeplabv3plus', or train without them: "
                "'--set method_config.clustering=false'.",
            )
        classes, dim = classifier.out_channels, classifier.in_channels
        bases = ClassBases(classes, self.domains, dim, self.momentum, self.temperature)
        decoder.classifier = bases.to(classifier.weight)


ADAPTERS = {"class_bases": ClassBasesAdapter}
