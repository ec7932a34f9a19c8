"""`wildnet`: learn from the styles of unlabelled images (stylisation of WildNet, CVPR 2022).

Left out: the contrastive loss with its queue, and the consistency of the auxiliary head.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from pinmem_core.config import Settings
from pinmem_core.data.batches import step_seed
from pinmem_core.data.transforms import normalize
from pinmem_core.distributed import rank
from pinmem_core.errors import ConfigError
from pinmem_core.images import read_image
from pinmem_core.inference.sources import find_sources
from pinmem_core.methods.base import Method, StepContext, StepResult
from pinmem_core.methods.losses import Losses, training_pass
from pinmem_core.methods.meta import unrecorded_statistics
from pinmem_core.methods.style import Places, restyle, style_of
from pinmem_core.models import Segmenter


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Return KL(p ‖ q) / (K·H·W), the mean over images, for the softmax p and q of logits.

    Args:
        logits: Logits of p, (N, K, H, W).
        others: Logits of q, (N, K, H, W).
    """
    p, q = logits.log_softmax(dim=1), others.log_softmax(dim=1)
    return (p.exp() * (p - q)).mean()


class WildNet(Method):
    """WildNet's stylisation: train on the images, and on them in the styles of other images.

    L = CE(x) + CE(x') + λ·KL(p ‖ p') / (K·H·W). The early maps of x' take the styles that the maps
    of a wild image have at the same places. CE includes the auxiliary loss; p and p' are the
    predictions at the decoder's resolution.
    """

    memory = "none"
    meta = False

    class Config(Settings):
        """Settings of the method."""

        images: str | None = None
        """Folder of any unlabelled images, whose styles are used; None: other images of the batch,
        the paper's control without ImageNet."""
        weight: float = Field(10.0, ge=0)
        """Weight λ of the divergence."""
        places: tuple[int, ...] = Field((0, 1, 2), min_length=1)
        """Places of the styles: 0 is the stem, i the end of stage i."""
        placebo: bool = False
        """Use the style of the image itself."""

    def setup(self, segmenter: Segmenter) -> None:
        """Find the places and the images."""
        self.places = Places(segmenter, self.settings.places)
        self.normalization = segmenter.normalization
        folder = self.settings.images
        self.files = [
            source.path
            for source in find_sources([folder] if folder else [])
            if not source.is_video
        ]
        if folder and not self.files:
            raise ConfigError(f"the folder '{folder}' holds no images.")

    def step(self, context: StepContext) -> StepResult:
        """Accumulate the gradient of the losses on x and x' into `.grad`."""
        segmenter, loss = context.segmenter, self.config.loss
        segmenter.train()
        rng = np.random.default_rng(step_seed(self.config.seed, context.iteration, rank()))
        images, labels = context.batch.all()
        plain, output = training_pass(segmenter, images, labels, loss)
        with unrecorded_statistics(segmenter):
            wild = self._wild(images, rng)
            styles = self.places.styles(lambda: segmenter.encode(wild))
            with self.places.changing(lambda i, maps: restyle(maps, style_of(maps), styles[i])):
                stylised, restyled = training_pass(segmenter, images, labels, loss)
        kl = divergence(output.logits, restyled.logits)
        total = plain.total + stylised.total + self.settings.weight * kl
        self.backward(segmenter, total, last=True)
        terms = {f"{name}_wild": term for name, term in stylised.terms.items()}
        return StepResult({"train": Losses({**plain.terms, **terms, "kl": kl}, total)})

    def _wild(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Return an image with another style for each of the images (N, 3, H, W)."""
        if self.settings.placebo:
            return images
        count, size = len(images), [*images.shape[-2:]]
        if not self.files:
            return images[torch.tensor(rng.permutation(count), device=images.device)]
        crops = []
        for number in rng.integers(len(self.files), size=count):
            pixels = torch.tensor(read_image(self.files[number])).permute(2, 0, 1)
            height, width = pixels.shape[1:]
            side = max(1, round(min(height, width) * rng.uniform(0.5, 1.0)))
            top, left = (int(rng.integers(length - side + 1)) for length in (height, width))
            crops.append(F.resized_crop(pixels, top, left, side, side, size))
        return normalize(torch.stack(crops).to(images.device), self.normalization).to(images)


METHODS = {"wildnet": WildNet}
