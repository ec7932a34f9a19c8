"""The interface of a backbone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pinmem_core.data.transforms import IMAGENET, Normalization
from pinmem_core.errors import ConfigError
from pinmem_core.models.weights import load_strictly, read_weights
from pinmem_core.paths import expanded


class Backbone(nn.Module, ABC):
    """A network that maps images to features of several strides.

    Constructors take the output stride, and options of their own by keyword.

    Attributes:
        name: Name of the network, for messages.
        channels: Channels of each feature, from the finest to the coarsest.
        strides: Image pixels per position of each feature, along a side.
        size_multiple: `Segmenter` resizes images so that their sides are multiples of this.
        mean: Mean of the normalisation of each channel, for images in 0..1.
        std: Standard deviation of the normalisation of each channel.
        unused_weights: Name prefixes of published weights that the backbone does not use.
    """

    name: str
    channels: list[int]
    strides: list[int]
    size_multiple: int = 1
    mean: tuple[float, float, float] = IMAGENET.mean
    std: tuple[float, float, float] = IMAGENET.std
    unused_weights: tuple[str, ...] = ()

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation."""
        return Normalization(self.mean, self.std)

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features (N, channels[i], H/strides[i], W/strides[i]) of normalised images.

        Args:
            images: Images, (N, 3, H, W), with sides that are multiples of `size_multiple`.
        """

    def stages(self) -> list[nn.Module]:
        """Return the stages in order, one per feature; [] if the backbone has none.

        Training recomputes their activations, and layer decay counts them. A stage is a module or a
        container of modules, so a forward hook belongs on a block.
        """
        return []

    def stem_end(self) -> nn.Module:
        """Return the module whose output is the first map, of stride 2 or 4."""
        return self.blocks()[0]

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of all stages in order; each is called once in a forward pass."""
        return [block for stage in self.stages() for block in blocks_of(stage)]

    @torch.no_grad()
    def probe(self) -> list[Tensor]:
        """Return the features of a small image in evaluation mode, to learn the shapes of maps."""
        side, training = 2 * max(self.strides[-1], self.size_multiple), self.training
        self.eval()
        features: list[Tensor] = self(next(self.parameters()).new_zeros(1, 3, side, side))
        self.train(training)
        return features

    def output_shapes(self, modules: Sequence[nn.Module]) -> list[torch.Size]:
        """Return the shape of the output of each module for the image of `probe`."""
        shapes: dict[nn.Module, torch.Size] = {}
        hooks = [
            module.register_forward_hook(lambda module, _, out: shapes.update({module: out.shape}))
            for module in modules
        ]
        self.probe()
        for hook in hooks:
            hook.remove()
        return [shapes[module] for module in modules]

    def pretrained(self) -> nn.Module:
        """Return the part that pretrained weights exist for."""
        return self

    def pretrained_outputs(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of `pretrained()`, which `neck` turns into the features."""
        features: list[Tensor] = self(images)
        return features

    def neck(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return the features for the result of `pretrained_outputs`."""
        return outputs

    def load_pretrained(self, source: str, *, download: bool = True) -> bool:
        """Load pretrained weights strictly.

        Args:
            source: File (.safetensors, or .pth with a state dict), or name of published weights.
            download: Whether to download weights that are not on this machine.

        Returns:
            True if the weights are loaded; False if they need a download that is not allowed.

        Raises:
            ConfigError: The file or the weights do not exist.
            DataError: The file is damaged, or its tensors do not fit the backbone.
            MachineError: The weights cannot be downloaded.
        """
        state = self.read_pretrained(source, download=download)
        if state is not None:
            self.load_weights(state, source)
        return state is not None

    def read_pretrained(self, source: str, *, download: bool = True) -> Mapping[str, Tensor] | None:
        """Return pretrained weights with the names of the file; as for `load_pretrained`.

        Returns:
            Tensors by name; None if they need a download that is not allowed.
        """
        path = expanded(source)
        if path.is_file():
            return read_weights(path)
        if "/" in source or "." in source:
            raise ConfigError(f"the weights file '{source}' does not exist.")
        return self.published(source, download)

    def published(self, name: str, download: bool) -> Mapping[str, Tensor] | None:
        """Return published weights by name; None if they need a download that is not allowed."""
        raise ConfigError(
            f"there is no weights file '{name}', and none are published for '{self.name}'."
        )

    def licence_of(self, source: str) -> str | None:
        """Return the licence of published weights by their name; None if it is not known."""
        return None

    def load_weights(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load the tensors that `source` holds."""
        load_strictly(self, state, f"the weights in {source}", self.name, self.unused_weights)


def require_described(backbone: object, name: str) -> None:
    """Raise ConfigError if a backbone lacks an attribute, or one has an impossible value.

    Args:
        backbone: Result of the constructor.
        name: Name of the backbone in the configuration.
    """
    if not isinstance(backbone, Backbone):
        problem = f"is a {type(backbone).__name__}, no Backbone"
    elif missing := [key for key in ("name", "channels", "strides") if not hasattr(backbone, key)]:
        problem = f"lacks the attribute '{missing[0]}'"
    elif not backbone.channels or len(backbone.channels) != len(backbone.strides):
        problem = (
            f"has {len(backbone.channels)} channels and {len(backbone.strides)} strides; give one "
            "of each per feature"
        )
    elif min(backbone.size_multiple, *backbone.channels, *backbone.strides) < 1:
        problem = "has a size_multiple, stride or number of channels below 1"
    elif not (
        len(backbone.mean) == len(backbone.std) == 3
        and all(isinstance(value, int | float) for value in (*backbone.mean, *backbone.std))
    ):
        problem = "needs a mean and a std of three numbers, for red, green and blue"
    elif min(*backbone.mean, *backbone.std) < 0 or not min(backbone.std) > 0:
        problem = "has a mean below 0, or a std that is not above 0"
    elif max(*backbone.mean, *backbone.std) > 1:
        problem = "has a mean or std above 1; they are for images in 0..1, not 0..255"
    else:
        return
    raise ConfigError(f"the backbone '{name}' {problem}.")


def end_of(backbone: Backbone, stage: nn.Module) -> nn.Module:
    """Return the module that returns the maps of a stage: a hook on it is never recomputed."""
    return called_in(stage, backbone)[-1]


def called_in(stage: nn.Module, backbone: Backbone) -> list[nn.Module]:
    """Return the stage, or its blocks if the backbone does not call it as a whole."""
    runs_whole = stage in {*backbone.modules()} and not isinstance(stage, nn.ModuleList)
    return [stage] if runs_whole else blocks_of(stage)


def blocks_of(stage: nn.Module) -> list[nn.Module]:
    """Return the children of a container, or the stage itself."""
    return list(stage) if isinstance(stage, nn.Sequential | nn.ModuleList) else [stage]


def dilate(layer: nn.Module, dilation: int) -> None:
    """Keep the resolution of a stage: set stride 1, and dilate its 3x3 convolutions.

    The first block is dilated as well, as in DeepLab; torchvision's own option leaves it undilated.
    """
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)
