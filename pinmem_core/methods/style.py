"""Styles of feature maps, and the places of a backbone where a method reads or changes maps.

The style of a map is the mean and the standard deviation of each channel over its positions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pinmem_core.errors import ConfigError
from pinmem_core.models import Segmenter
from pinmem_core.models.backbones.base import end_of

EPS = 1e-6
"""Constant that is added to variances, so that a standard deviation is never 0."""


class Style(NamedTuple):
    """Statistics of each channel, (N, C, 1, 1), at least float32.

    Attributes:
        mean: Mean over the positions.
        std: Square root of the variance over the positions plus `EPS`.
    """

    mean: Tensor
    std: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Style":
        """Return the style with `change` applied to mean and standard deviation."""
        return Style(change(self.mean), change(self.std))


def style_of(maps: Tensor) -> Style:
    """Return the style of maps (N, C, H, W)."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    variance, mean = torch.var_mean(maps, dim=(2, 3), correction=0, keepdim=True)
    return Style(mean, (variance + EPS).sqrt())


def restyle(maps: Tensor, own: Style, new: Style) -> Tensor:
    """Return new.std · (x - own.mean) / own.std + new.mean of maps (N, C, H, W), as in AdaIN.

    With `new` equal to `own`, the result equals the maps.
    """
    scale = new.std / own.std
    return torch.addcmul(new.mean - own.mean * scale, maps, scale).to(maps.dtype)


Change = Callable[[int, Tensor], Tensor]
"""Function from the number of a place and its maps (N, C, H, W) to the maps that replace them."""


class Places:
    """Places of a backbone whose maps can be changed: 0 is the stem, i the end of stage i.

    Args:
        segmenter: Network with a convolutional backbone.
        numbers: Numbers of the places; None for all.

    Attributes:
        numbers: Numbers of the places.

    Raises:
        ConfigError: The backbone is not convolutional with stages, or has fewer of them.
    """

    def __init__(self, segmenter: Segmenter, numbers: Sequence[int] | None = None) -> None:
        backbone = segmenter.backbone
        modules = [backbone.stem_end(), *(end_of(backbone, stage) for stage in backbone.stages())]
        every = range(len(modules))
        self.numbers = every if numbers is None else numbers
        self._change: Change | None = None
        hooks = [modules[i].register_forward_hook(partial(self._hook, i)) for i in every]
        self._require_maps(segmenter)
        if missing := set(self.numbers) - set(every):
            raise ConfigError(
                f"the backbone '{backbone.name}' has no place {max(missing)} for styles: "
                f"it has the stem, 0, and {every[-1]} stages.",
                f"Choose from 0 to {every[-1]}: '--set method_config.places=[0,1]'.",
            )
        for number in set(every) - set(self.numbers):
            hooks[number].remove()

    @contextmanager
    def changing(self, change: Change) -> Iterator[None]:
        """Replace the maps of all places by those of `change` in the forward passes of a block."""
        self._change = change
        try:
            yield
        finally:
            self._change = None

    @torch.no_grad()
    def styles(self, run: Callable[[], object]) -> dict[int, Style]:
        """Return the styles of the maps of all places in the forward pass of `run`."""
        styles: dict[int, Style] = {}

        def record(place: int, maps: Tensor) -> Tensor:
            styles[place] = style_of(maps)
            return maps

        with self.changing(record):
            run()
        return styles

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _hook(self, number: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return None if self._change is None else self._change(number, output)

    def _require_maps(self, segmenter: Segmenter) -> None:
        """Raise ConfigError unless the stages return maps (N, C, H, W), not tokens."""
        backbone, shapes = segmenter.backbone, {}

        def record(number: int, maps: Tensor) -> Tensor:
            shapes[number] = tuple(maps.shape)
            return maps

        with self.changing(record):
            features = backbone.probe()
        segmenter.train(segmenter.training)  # frozen parts stay in evaluation mode
        if [shapes.get(i + 1) for i in range(len(features))] != [tuple(f.shape) for f in features]:
            raise ConfigError(
                "a change of style needs a convolutional backbone with stages, "
                f"not '{backbone.name}'.",
                "Use '--set model.backbone=resnet50', or another convolutional one.",
            )
