"""Batch norms whose statistics can be replaced for one image, and a memory of class statistics."""

from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem_core.data.samples import Sample
from pinmem_core.data.transforms import normalize
from pinmem_core.models import Segmenter
from pinmem_core.models.norm import set_alpha

FIRST = 0.1
"""Share of the image's own statistics in the pass that the shares are predicted from."""
TINY = 1e-8

Statistics = tuple[Tensor, Tensor]


class Norms:
    """The batch norms of a network, whose statistics can be replaced for one image."""

    def __init__(self, network: Segmenter) -> None:
        set_alpha(network, 0.0)
        self.network = network
        self.running: dict[nn.Module, Statistics] = {
            norm: (norm.running_mean, norm.running_var)
            for norm in network.modules()
            if isinstance(norm, nn.BatchNorm2d)
        }

    @contextmanager
    def each(self, act: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
        """Call `act` with each batch norm and its input (1, C, h, w), if that has a variance."""

        def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0][0, 0].numel() > 1:
                act(norm, inputs[0])

        hooks = [norm.register_forward_pre_hook(hook) for norm in self.running]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()
            for norm, (mean, variance) in self.running.items():
                norm.running_mean, norm.running_var = mean, variance

    def logits(
        self,
        image: Tensor,
        rho: float = 0.0,
        expected: Callable[[nn.Module], Statistics] | None = None,
        where: Container[nn.Module] | None = None,
    ) -> Tensor:
        """Return the logits (K, H, W) with the share `rho` of the image's own statistics.

        Args:
            image: Normalised image, (1, 3, H, W).
            rho: Share of the image's own statistics, in 0..1.
            expected: Mean and variance of a batch norm that stand for no change; None for the
                running ones.
            where: Batch norms that take the image's statistics; None for all.
        """
        with self.changed(rho, expected, where):
            return self.network(image)[0]

    def feature_and_logits(self, image: Tensor, rho: float) -> tuple[Tensor, Tensor]:
        """Return the decoder's feature (D, h, w) and the logits (K, h, w), before their resize."""
        with self.changed(rho):
            output = self.network.run(image)
        return output.encoding.feature[0], output.logits[0]

    @contextmanager
    def changed(
        self,
        rho: float,
        expected: Callable[[nn.Module], Statistics] | None = None,
        where: Container[nn.Module] | None = None,
    ) -> Iterator[None]:
        """Let the network use the statistics of `logits` meanwhile."""
        expected = expected or self.running.__getitem__

        def mix(norm: nn.Module, values: Tensor) -> None:
            if where is not None and norm not in where:
                return
            mean, variance = torch.batch_norm_update_stats(values, None, None, 0)
            usual_mean, usual_variance = expected(norm)
            running_mean, running_variance = self.running[norm]
            ratio = variance / usual_variance.clamp_min(TINY)
            norm.running_mean = running_mean + rho * (mean - usual_mean)
            norm.running_var = running_variance * (1 - rho + rho * ratio)

        with self.each(mix) if rho else nullcontext():
            yield


class Memory:
    """Moments of the input of each batch norm by class, and the class shares of the sources."""

    def __init__(self, norms: Norms, samples: Sequence[Sample]) -> None:
        sums: dict[nn.Module, list[Tensor]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        each = []
        for sample in samples:
            seen: dict[nn.Module, Tensor] = {}
            with norms.each(seen.__setitem__):
                logits = norms.logits(tensor(norms.network, sample.read()[0]))
            probabilities = logits.softmax(dim=0)
            each.append(probabilities.mean(dim=(1, 2)))
            for norm, values in seen.items():
                weights = F.adaptive_avg_pool2d(probabilities, values.shape[-2:]).flatten(1)
                flat = values[0].flatten(1).T - norm.running_mean
                parts = weights.sum(dim=1), weights @ flat, weights @ flat.square()
                sums[norm] = [a + b.double() for a, b in zip(sums[norm], parts, strict=True)]
        self.shares = torch.stack(each).mean(dim=0)
        self.norms, self.running = norms, norms.running
        self.moments = {
            norm: (first / count[:, None], second / count[:, None])
            for norm, (count, first, second) in sums.items()
        }

    def expected(
        self, shares: Tensor, *, centred: bool = False
    ) -> Callable[[nn.Module], Statistics]:
        """Return the mean and variance of a batch norm's input in an image of these shares (K,).

        With `centred`, the shares of the sources give the running statistics, so that the memory
        says only what changes with the shares.
        """

        def of(norm: nn.Module) -> Statistics:
            mean, variance = self._mixture(norm, shares)
            running_mean, running_variance = self.running[norm]
            if centred:
                usual_mean, usual_variance = self._mixture(norm, self.shares)
                mean = mean - usual_mean
                variance = running_variance * variance / usual_variance.clamp_min(TINY)
            return running_mean + mean.float(), variance.float()

        return of

    def _mixture(self, norm: nn.Module, shares: Tensor) -> Statistics:
        """Return mean, relative to the running mean, and variance of a mixture of the classes."""
        first, second = (shares.double() @ moments for moments in self.moments[norm])
        return first, second - first.square()


def tensor(network: Segmenter, image: np.ndarray) -> Tensor:
    """Return an RGB image (H, W, 3) as the input of the network, (1, 3, H, W)."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None]
    return normalize(pixels, network.normalization).to(memory_format=torch.channels_last)
