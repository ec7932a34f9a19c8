"""Rein (Wei et al., CVPR 2024): learned tokens that refine the features of a frozen ViT.

Written from the equations of the paper. A mask decoder takes its queries from the tokens.
"""

import math
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from pinmem_core.errors import ConfigError
from pinmem_core.models.adapters.base import Adapter
from pinmem_core.models.backbones.base import Backbone
from pinmem_core.models.decoders.base import Decoder, QueryDecoder


class ReinTokens(nn.Module):
    """Refine the patch tokens f (N, n, C) after each block i.

    With the tokens T_i = A_i B_i, (m, C), and S = softmax(f T_iᵀ / √C), (N, n, m):
    f + scale · W_f (S' W_T T_i' + f), where S' and T_i' are without the first token. This token is
    a sink: it takes the attention of patches that need no refinement.

    Each token position gives one query: a linear map of the maximum, the mean and the last of
    W_q T_i over the blocks i.

    Args:
        blocks: Number of blocks.
        dim: Channels C.
        tokens: Number of tokens of a block, m.
        rank: Rank of T_i.

    Attributes:
        a: Left factors, (blocks, m, rank).
        b: Right factors, (blocks, rank, C).
        token_map: W_T, shared by all blocks.
        feature_map: W_f, shared by all blocks.
        scale: Factor of the refinement, initially 0.001.
        query_map: W_q, shared by all blocks; None without queries.
        query_merge: Linear map to the queries; None without queries.
    """

    def __init__(self, blocks: int, dim: int, tokens: int, rank: int) -> None:
        super().__init__()
        bound = math.sqrt(6 / (dim + rank))
        self.a = nn.Parameter(torch.empty(blocks, tokens, rank).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(blocks, rank, dim).uniform_(-bound, bound))
        self.token_map = nn.Linear(dim, dim)
        self.feature_map = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.tensor(0.001))
        self.query_map: nn.Linear | None = None
        self.query_merge: nn.Linear | None = None

    def refine(self, features: Tensor, block: int) -> Tensor:
        """Return the refined patch tokens (N, n, C) after a block."""
        tokens = self.a[block] @ self.b[block]
        attention = (features @ tokens.T / math.sqrt(features.shape[-1])).softmax(dim=-1)
        read = attention[..., 1:] @ self.token_map(tokens[1:])
        refined: Tensor = features + self.scale * self.feature_map(read + features)
        return refined

    def add_queries(self, dim: int) -> None:
        """Add the maps that derive queries with `dim` channels."""
        self.query_map = nn.Linear(self.b.shape[-1], dim)
        self.query_merge = nn.Linear(3 * dim, dim)
        self.to(self.b)

    def queries(self) -> Tensor:
        """Return the queries (m, dim); `add_queries` comes before."""
        assert self.query_map is not None and self.query_merge is not None
        mapped = self.query_map(self.a @ self.b)
        merged = torch.cat([mapped.amax(dim=0), mapped.mean(dim=0), mapped[-1]], dim=-1)
        queries: Tensor = self.query_merge(merged)
        return queries


class Rein(Adapter):
    """Refinement by learned tokens after each block of a plain ViT, whose weights are frozen."""

    freezes: ClassVar[bool] = True

    tokens: int = Field(100, ge=2)
    """Number of tokens of a block, the sink included."""
    rank: int = Field(16, ge=1)
    """Rank of the tokens of a block."""

    def insert(self, backbone: Backbone) -> None:
        """Add the tokens as `backbone.rein`, and refine the output of each block."""
        vit: Any = getattr(backbone, "network", None)
        if not getattr(backbone, "plain", False) or vit is None:
            raise ConfigError(
                f"Rein needs a plain ViT, not the backbone '{backbone.name}'.",
                "Use '--set model.backbone=timm:vit_small_patch14_dinov2', or another ViT of timm.",
            )
        blocks = backbone.blocks()
        rein = ReinTokens(len(blocks), vit.embed_dim, self.tokens, self.rank)
        backbone.add_module("rein", rein.to(next(backbone.parameters())))
        for number, block in enumerate(blocks):
            block.register_forward_hook(
                partial(_refine_patches, rein=rein, number=number, prefix=vit.num_prefix_tokens)
            )

    def insert_into_decoder(self, decoder: Decoder, backbone: Backbone) -> None:
        """Derive the queries of a mask decoder from the tokens."""
        if isinstance(decoder, QueryDecoder):
            rein = backbone.get_submodule("rein")
            assert isinstance(rein, ReinTokens)
            rein.add_queries(decoder.dim)
            decoder.use_queries(rein.queries)


def _refine_patches(
    block: nn.Module, inputs: Any, output: Tensor, *, rein: ReinTokens, number: int, prefix: int
) -> Tensor:
    """Refine all tokens of a block but its first ones: the class token and the registers."""
    refined = rein.refine(output[:, prefix:], number)
    return torch.cat([output[:, :prefix], refined], dim=1) if prefix else refined


ADAPTERS = {"rein": Rein}
