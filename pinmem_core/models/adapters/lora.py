"""LoRA (Hu et al., ICLR 2022): low-rank updates of frozen linear maps.

SoMA (CVPR 2025) starts the update at the smallest singular values of each weight, so that training
keeps the directions that the pretrained network uses most.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pinmem_core.errors import ConfigError
from pinmem_core.models.adapters.base import Adapter
from pinmem_core.models.backbones.base import Backbone


class LoRALinear(nn.Linear):
    """y = W x + b + (alpha / rank) (B A - B' A') x with a frozen W.

    An `nn.Linear` becomes one by `adapt`; its parameters keep their names and values. A' and B' are
    the initial A and B after `split_minor`, and else 0.

    Attributes:
        lora_a: A, (rank, inputs).
        lora_b: B, (outputs, rank).
        minor_a: A', (rank, inputs); None for 0.
        minor_b: B', (outputs, rank); None for 0.
        scaling: alpha / rank.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    minor_a: Tensor | None
    minor_b: Tensor | None
    scaling: float

    @staticmethod
    def adapt(linear: nn.Linear, rank: int, alpha: float, *, minor: bool = False) -> None:
        """Turn a linear map into one with an update; B = 0, so that the map does not change.

        Args:
            linear: Map to change in place.
            rank: Rank of the update.
            alpha: Numerator of its factor.
            minor: Whether `split_minor` may follow.
        """
        linear.__class__ = LoRALinear
        assert isinstance(linear, LoRALinear)
        linear.scaling = alpha / rank
        linear.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        linear.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(linear.lora_a, a=5**0.5)
        linear.register_buffer("minor_a", torch.zeros_like(linear.lora_a) if minor else None)
        linear.register_buffer("minor_b", torch.zeros_like(linear.lora_b) if minor else None)

    @torch.no_grad()
    def split_minor(self) -> None:
        """Train the part of W with the smallest singular values, and freeze the other part.

        With W = U diag(s) Vᵀ, the initial update is the sum over the last `rank` triplets. SoMA
        subtracts it from W; here B' A' does, so that W keeps the bits of the pretrained weight.
        """
        rank = len(self.lora_a)
        u, s, v = torch.linalg.svd(self.weight.float(), full_matrices=False)
        roots = (s[-rank:] / self.scaling).sqrt()
        self.lora_b.copy_(u[:, -rank:] * roots)
        self.lora_a.copy_(roots[:, None] * v[-rank:])
        self.minor_a, self.minor_b = self.lora_a.detach().clone(), self.lora_b.detach().clone()

    def forward(self, input: Tensor) -> Tensor:
        """Return the map of (..., inputs)."""
        update = F.linear(F.linear(input, self.lora_a), self.lora_b)
        if self.minor_a is not None and self.minor_b is not None:
            update = update - F.linear(F.linear(input, self.minor_a), self.minor_b)
        return super().forward(input) + self.scaling * update


class LoRA(Adapter):
    """Low-rank updates of the linear maps in the blocks of a frozen backbone."""

    freezes: ClassVar[bool] = True

    rank: int = Field(16, ge=1, le=1024)
    """Rank of the updates."""
    alpha: float | None = Field(None, gt=0)
    """Numerator of the factor alpha / rank of the updates; None: the rank."""
    targets: tuple[str, ...] = ("qkv", "q_proj", "k_proj", "v_proj", "proj", "fc1", "fc2")
    """Names of the linear maps."""
    first_block: int = Field(0, ge=0)
    """First block with updates, counted from 0; SoMA uses 8 of 24."""
    init: Literal["random", "minor"] = "random"
    """"random": B = 0, as in LoRA. "minor": the smallest singular triplets, as in SoMA."""
    bias: bool = False
    """Also train the biases of these maps, as in SoMA."""

    def insert(self, backbone: Backbone) -> None:
        """Insert the updates."""
        maps = self._maps(backbone)
        if not maps:
            raise ConfigError(
                f"LoRA finds no linear map to update in the backbone '{backbone.name}'.",
                "Use a transformer or ConvNeXt of timm, or name other layers: "
                "'--set model.adapters.lora.targets=[...]'.",
            )
        for linear in maps:
            if self.rank > min(linear.weight.shape):
                raise ConfigError(
                    f"the rank {self.rank} of LoRA exceeds the rank of a map with shape "
                    f"{tuple(linear.weight.shape)}.",
                    "Set a smaller one: '--set model.adapters.lora.rank=4'.",
                )
            minor = self.init == "minor"
            LoRALinear.adapt(linear, self.rank, self.alpha or self.rank, minor=minor)
            if self.bias and linear.bias is not None:
                linear.bias.requires_grad_(True)

    def initialize(self, backbone: Backbone) -> None:
        """Split the pretrained weights if `init` is "minor"."""
        if self.init == "minor":
            for linear in self._maps(backbone):
                assert isinstance(linear, LoRALinear)
                linear.split_minor()

    def _maps(self, backbone: Backbone) -> list[nn.Linear]:
        return [
            module
            for block in backbone.blocks()[self.first_block :]
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in self.targets
        ]


ADAPTERS = {"lora": LoRA}
