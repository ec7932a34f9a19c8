"""Backbones of timm: `timm:NAME` is any network there that can return intermediate features.

Hierarchical networks (ConvNeXt, Swin, ResNet, EfficientNet, ...) have features of several strides.
Plain ViTs (DINOv2, DINOv3, EVA-02, ...) have one, so a simple feature pyramid (Li et al., ECCV
2022) rescales the outputs of four evenly spaced blocks.
"""

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from torch import Tensor, nn

from pinmem_core.checkpoints.hub import HubName, asking_hub
from pinmem_core.errors import ConfigError, MachineError, unknown_name
from pinmem_core.models.backbones.base import Backbone
from pinmem_core.models.weights import load_strictly, read_weights

_FILE = "model.safetensors"
"""Weights in the repositories of timm on the Hub."""
_PATCH = 16
"""Side of the patches of ViTs, in pixels. Weights for patches of another size are resampled."""
_STRIDES = (4, 8, 16, 32)


class Timm(Backbone):
    """A network of timm without its head; `network` has timm's parameter names.

    Args:
        name: Name in timm, with or without the tag of its weights.
        output_stride: Output stride, 8, 16 or 32.
        options: Arguments of `timm.create_model`, e.g. `drop_path_rate`.

    Raises:
        ConfigError: The network does not exist, or cannot have the output stride.
        MachineError: timm is missing.
    """

    def __init__(self, name: str, output_stride: int, **options: Any) -> None:
        super().__init__()
        timm = _timm()
        if not timm.is_model(name):
            close = get_close_matches(name, timm.list_models(), n=3)
            hint = f"Similar ones: {', '.join(close)}." if close else None
            raise ConfigError(f"timm has no network '{name}'.", hint)
        self.name = f"timm:{name}"
        with torch.device("meta"):
            original = timm.create_model(name)
        self.plain = len({layer["reduction"] for layer in _layers(original)}) == 1
        sizes = _vit_sizes(original) if self.plain else _sizes(original, output_stride)
        fixed = ConfigError(
            f"the backbone '{self.name}' has a fixed output stride.",
            "Use '--set model.output_stride=32'.",
        )
        try:
            self.network: Any = timm.create_model(name, num_classes=0, **(sizes | options))
        except TypeError as error:
            if "output_stride" not in str(error):
                raise
            raise fixed from error
        if not self.plain and _layers(self.network)[-1]["reduction"] > output_stride:
            raise fixed  # some networks ignore the option
        cfg = self.network.pretrained_cfg
        self.mean, self.std = tuple(cfg["mean"]), tuple(cfg["std"])
        self._choose_layers(output_stride)
        self.network.prune_intermediate_layers(
            self.indices, prune_norm=not self.plain, prune_head=True
        )
        self.unused_weights = (*(original.state_dict().keys() - self.network.state_dict().keys()),)

    def _choose_layers(self, output_stride: int) -> None:
        layers = _layers(self.network)
        count, patch = len(layers), layers[0]["reduction"]
        self.pyramid = nn.ModuleList()
        if self.plain:
            self.indices = [max(0, part * count // 4 - 1) for part in (1, 2, 3, 4)]
            strides = [min(stride, output_stride) for stride in _STRIDES]
            self.strides = [stride * patch // _PATCH for stride in strides]
            dim = layers[0]["num_chs"]
            self.pyramid.extend(_rescaling(dim, _PATCH / stride) for stride in strides)
        else:
            self.indices = [i for i in range(count) if layers[i]["reduction"] >= _STRIDES[0]]
            self.strides = [layers[i]["reduction"] for i in self.indices]
        self.channels = [layers[i]["num_chs"] for i in self.indices]
        self.size_multiple = max(self.strides[-1], patch if self.plain else 1)

    @classmethod
    def available(cls, pattern: str) -> list[str]:
        """Return the names in timm that match a pattern with wildcards; [] without timm.

        If no name matches, the pattern is compared with names and tags of published weights, e.g.
        "convnext*dinov3*".
        """
        if find_spec("timm") is None:
            return []
        timm = _timm()
        names: list[str] = timm.list_models(pattern) or timm.list_models(f"*{pattern}")
        return names or [*dict.fromkeys(n.split(".")[0] for n in timm.list_pretrained(pattern))]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features, (N, C, ·, ·)."""
        return self.neck(self.pretrained_outputs(images))

    def pretrained_outputs(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the layers in `indices`, (N, C, ·, ·)."""
        indices = [*dict.fromkeys(self.indices)]
        outputs = self.network.forward_intermediates(
            images, indices=indices, norm=self.plain, intermediates_only=True, output_fmt="NCHW"
        )
        of_layer = dict(zip(indices, outputs, strict=True))
        return [of_layer[index] for index in self.indices]

    def neck(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return the maps that the feature pyramid of a plain ViT makes of the outputs."""
        if not self.plain:
            return outputs
        return [scale(output) for scale, output in zip(self.pyramid, outputs, strict=True)]

    def pretrained(self) -> nn.Module:
        """Return the network, without the feature pyramid."""
        network: nn.Module = self.network
        return network

    def stem_end(self) -> nn.Module:
        """Return the last module before the first block."""
        for name in ("maxpool", "stem", "bn1"):
            part: nn.Module | None = getattr(self.network, name, None)
            if part is not None:
                return part
        return self.blocks()[0]

    def stages(self) -> list[nn.Module]:
        """Return the blocks up to each feature; [] if timm does not name them."""
        stages: list[nn.Module] = []
        used: dict[str, int] = {}
        for index in self.indices:
            path = _layers(self.network)[index]["module"]
            parent, _, last = path.rpartition(".")
            try:
                stage = self.network.get_submodule(parent if last.isdigit() else path)
            except AttributeError:  # e.g. HRNet, whose modules have other names
                return []
            if last.isdigit():
                stage = stage[used.get(parent, 0) : int(last) + 1]
                used[parent] = int(last) + 1
            stages.append(nn.ModuleList(_blocks(stage)))
        return stages

    def published(self, name: str, download: bool) -> Mapping[str, Tensor] | None:
        """Return timm's weights by their tag, e.g. "lvd142m"; "default" is the network's own."""
        tags = weights_of(self.name)
        if name not in tags and not (name == "default" and tags):
            raise unknown_name(f"weights of {self.name}", name, tags)
        repo = self._published_cfg(name)["hf_hub_id"]
        cached = try_to_load_from_cache(repo, _FILE)
        if not download and not isinstance(cached, str):
            return None
        with asking_hub(HubName(repo), f"fetch {repo}"):
            return read_weights(Path(hf_hub_download(repo, _FILE)))

    def licence_of(self, source: str) -> str | None:
        """Return the licence of published weights that timm states, e.g. "apache-2.0"."""
        if source != "default" and source not in weights_of(self.name):
            return None
        licence: str | None = self._published_cfg(source).get("license")
        return licence

    def _published_cfg(self, tag: str) -> dict[str, Any]:
        if tag == "default":
            own: dict[str, Any] = self.network.pretrained_cfg
            return own
        return vars(_timm().models.get_pretrained_cfg(f"{_architecture(self.name)}.{tag}"))

    def load_weights(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load weights with timm's names; patches and positions are resampled."""
        adapt = getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None)
        if adapt is not None:
            state = adapt(dict(state), self.network)
        what = f"the weights in {source}"
        load_strictly(self.network, state, what, self.name, self.unused_weights)


def weights_of(name: str) -> dict[str, str | None]:
    """Return the licences of the published weights of a network `timm:NAME`, by their tag."""
    return _licences().get(_architecture(name), {})


@cache
def _licences() -> dict[str, dict[str, str | None]]:
    licences: dict[str, dict[str, str | None]] = {}
    for known in _timm().list_pretrained():
        architecture, _, tag = known.partition(".")
        cfg = _timm().models.get_pretrained_cfg(known)
        licences.setdefault(architecture, {})[tag] = cfg.license
    return licences


def _architecture(name: str) -> str:
    """Return the name in timm without the tag of weights."""
    return name.removeprefix("timm:").partition(".")[0]


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError:
        raise MachineError(
            "timm is not installed.", "Install it with: pip install 'pinmem[backbones]'"
        ) from None


def _layers(network: Any) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = network.feature_info
    return layers


def _sizes(network: Any, output_stride: int) -> dict[str, Any]:
    """Return the options that give a hierarchical network its stride, and images of any size."""
    options: dict[str, Any] = {}
    if output_stride < _STRIDES[-1]:
        options["output_stride"] = output_stride
    if hasattr(getattr(network, "patch_embed", None), "strict_img_size"):  # Swin
        options["strict_img_size"] = False
    return options


def _vit_sizes(vit: Any) -> dict[str, Any]:
    """Return the options that give a plain ViT patches of 16 pixels, and images of any size."""
    options: dict[str, Any] = {"dynamic_img_size": True}
    patch, grid = vit.patch_embed.patch_size, vit.patch_embed.grid_size
    if patch[0] != _PATCH:
        options |= {"patch_size": _PATCH, "img_size": tuple(_PATCH * side for side in grid)}
    return options


def _rescaling(dim: int, factor: float) -> nn.Module:
    """Return layers that scale a map by 4, 2, 1 or 1/2."""
    if factor == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 2, 2),
            nn.GroupNorm(1, dim),
            nn.GELU(),
            nn.ConvTranspose2d(dim, dim, 2, 2),
        )
    if factor == 2:
        return nn.ConvTranspose2d(dim, dim, 2, 2)
    return nn.MaxPool2d(2) if factor < 1 else nn.Identity()


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks in containers, and in stages of timm, which have an attribute `blocks`."""
    if isinstance(module, nn.Sequential | nn.ModuleList) or hasattr(module, "blocks"):
        return [block for child in module.children() for block in _blocks(child)]
    return [] if isinstance(module, nn.Identity) else [module]


BACKBONES = {"timm:*": Timm}
