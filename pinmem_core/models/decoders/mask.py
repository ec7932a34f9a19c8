"""Mask classification: each query predicts one class and one mask.

Source: Mask2Former (Cheng et al., CVPR 2022). As in EoMT (Kerssies et al., CVPR 2025), there are
few layers and no deformable attention: queries attend to the features of the backbone, from the
coarsest to the finest but one, in turn.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem_core.label_space import IGNORE_INDEX
from pinmem_core.models.decoders.base import PixelLoss, QueryDecoder, initialize
from pinmem_core.models.decoders.matching import match
from pinmem_core.models.decoders.pyramid import FeaturePyramid

_HEADS = 8
_TINY = 1e-6
"""Added to the scores of classes before the logarithm."""


class Attention(nn.Module):
    """Multi-head attention of queries to the pixels of a map, or to one another.

    torch's own module fixes the number of images in an exported graph.

    Args:
        dim: Channels D.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, outside: Tensor | None = None
    ) -> Tensor:
        """Return the values (N, Q, D) that the queries read.

        Args:
            queries: Queries, (N, Q, D).
            keys: Keys, (N, n, D).
            values: Values, (N, n, D).
            outside: Keys that a query does not attend to, (N, Q, n) bool.
        """
        q, k, v = self.query(queries), self.key(keys), self.value(values)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        mask = None if outside is None else ~outside[:, None]
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output: Tensor = self.output(read.transpose(1, 2).flatten(2))
        return output


class QueryLayer(nn.Module):
    """Masked cross-attention, self-attention and a feed-forward network, each after its sum normed.

    Args:
        dim: Channels D of queries and maps.
        heads: Number of attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.cross = Attention(dim, heads)
        self.self_attention = Attention(dim, heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(self, queries: Tensor, places: Tensor, pixels: Tensor, outside: Tensor) -> Tensor:
        """Return the updated queries (N, Q, D).

        Args:
            queries: Queries, (N, Q, D).
            places: Positions of the queries, (Q, D).
            pixels: Pixels of one map, (N, n, D).
            outside: Pixels that a query does not attend to, (N, Q, n) bool.
        """
        queries = self.norms[0](queries + self.cross(queries + places, pixels, pixels, outside))
        at = queries + places
        queries = self.norms[1](queries + self.self_attention(at, at, queries))
        updated: Tensor = self.norms[2](queries + self.feed_forward(queries))
        return updated


class MaskClassification(QueryDecoder):
    """Queries over the features; the memory reads the finest map of a feature pyramid.

    Args:
        channels: Channels of the features.
        strides: Strides of the features.
        dim: Channels of the pyramid and of the queries.
        num_classes: Number of classes, K.
    """

    auxiliary = False
    QUERIES = 100
    LAYERS = 6

    def __init__(self, channels: list[int], strides: list[int], dim: int, num_classes: int) -> None:
        super().__init__()
        self.dim = dim
        self.pyramid = FeaturePyramid(channels, dim)
        self.maps = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in channels[1:] or channels)
        self.levels = nn.Parameter(torch.zeros(len(self.maps), dim))
        self.queries = nn.Parameter(torch.randn(self.QUERIES, dim) * 0.02)
        self.places = nn.Parameter(torch.randn(self.QUERIES, dim) * 0.02)
        heads = next(count for count in (_HEADS, 4, 2, 1) if dim % count == 0)
        self.layers = nn.ModuleList(QueryLayer(dim, heads) for _ in range(self.LAYERS))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes + 1)
        self.mask_embedding = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)
        )
        self.content: nn.Linear | None = None
        initialize(self)

    def use_queries(self, queries: Callable[[], Tensor]) -> None:
        """Take the positions of the queries from a function, and their contents by a linear map."""
        del self.queries, self.places
        self.content = nn.Linear(self.dim, self.dim)
        self._derived = queries

    def _contents_and_places(self) -> tuple[Tensor, Tensor]:
        if self.content is None:
            return self.queries, self.places
        places = self._derived()
        return self.content(places), places

    def project(self, features: list[Tensor]) -> Tensor:
        """Return the finest map of the pyramid."""
        finest: Tensor = self.pyramid(features)[0]
        return finest

    def decode(self, refined: Tensor, features: list[Tensor]) -> dict[str, list[Tensor]]:
        """Return class logits (N, Q, K+1) and mask logits (N, Q, h, w) before and after each layer.

        The last class is "no object". Prediction uses the last entries, the loss all of them.
        """
        coarse = features[1:] or features
        maps = [project(feature) for project, feature in zip(self.maps, coarse, strict=True)]
        queries, places = self._contents_and_places()
        queries = queries.to(refined.dtype).expand(refined.shape[0], -1, -1)
        output: dict[str, list[Tensor]] = {"classes": [], "masks": []}
        self._predict(queries, refined, output)
        for number, layer in enumerate(self.layers):
            level = -1 - number % len(maps)  # the coarsest first
            pixels = (maps[level] + self.levels[level][:, None, None]).flatten(2).transpose(1, 2)
            outside = _outside(output["masks"][-1], maps[level].shape[-2:])
            queries = layer(queries, places, pixels, outside)
            self._predict(queries, refined, output)
        return output

    def _predict(self, queries: Tensor, refined: Tensor, output: dict[str, list[Tensor]]) -> None:
        normed = self.norm(queries)
        embedded = self.mask_embedding(normed)
        output["classes"].append(self.classifier(normed))
        output["masks"].append(torch.einsum("nqd,ndhw->nqhw", embedded, refined.to(embedded.dtype)))

    def predict(self, output: Any) -> Tensor:
        """Return logits (N, K, h, w): the logarithm of the sum over queries of class times mask."""
        classes = output["classes"][-1].softmax(dim=-1)[..., :-1]
        masks = output["masks"][-1].sigmoid()
        return (torch.einsum("nqk,nqhw->nkhw", classes, masks) + _TINY).log()

    def loss(self, output: Any, labels: Tensor, pixel_loss: PixelLoss) -> dict[str, Tensor]:
        """Return the loss of classes and masks, averaged over the layers.

        Each class of an image is one target mask. Queries and targets are matched one to one.
        The weights are 2 for the classes and 5 each for the masks' cross-entropy and dice loss.

        Args:
            output: Output of `decode`.
            labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
            pixel_loss: Not used.
        """
        layers = zip(output["classes"], output["masks"], strict=True)
        losses = [match(classes, masks, labels, IGNORE_INDEX) for classes, masks in layers]
        return {
            f"mask_{name}": torch.stack([terms[name] for terms in losses]).mean()
            for name in losses[0]
        }


def _outside(masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the pixels outside of each query's mask, (N, Q, n); none for an empty mask."""
    inner = F.interpolate(masks.detach(), size=size, mode="bilinear", align_corners=False) >= 0
    inner = inner.flatten(2)
    return ~(inner | ~inner.any(dim=-1, keepdim=True))


DECODERS = {"mask": MaskClassification}
