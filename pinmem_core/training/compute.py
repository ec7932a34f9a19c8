"""How a step is computed: precision, memory layout, recomputation, compilation."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pinmem_core.config import ComputeConfig
from pinmem_core.devices import keep_freed_memory
from pinmem_core.distributed import world_size
from pinmem_core.errors import ConfigError
from pinmem_core.models import PRECISIONS, Segmenter
from pinmem_core.models.norm import synchronize_batch_norm
from pinmem_core.models.speedups import speed_up_dilation


def prepare(segmenter: Segmenter, config: ComputeConfig, device: torch.device) -> Segmenter:
    """Set up `segmenter` for training on `device`, and return it.

    Its parameters keep their names and their precision.

    Raises:
        ConfigError: The backbone has no stages whose activations can be recomputed.
    """
    segmenter.to(device)
    segmenter.autocast = PRECISIONS[config.precision]
    if device.type == "cuda":
        _set_up_cuda(config)
    else:
        keep_freed_memory()
        speed_up_dilation(segmenter)
    if world_size() > 1:
        synchronize_batch_norm(segmenter, device)
    if config.channels_last:
        segmenter.to(memory_format=torch.channels_last)
    if config.recompute:
        for block in _blocks_to_recompute(segmenter, config):
            _recompute(block)
    if config.compile:
        for name in ("encode", "decode", "auxiliary_logits"):
            setattr(segmenter, name, torch.compile(getattr(segmenter, name)))
    return segmenter


def _set_up_cuda(config: ComputeConfig) -> None:
    """Set the precision of float32 products, and cuDNN's choice of algorithms."""
    precision = "tf32" if config.tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not config.deterministic
    if config.deterministic:
        # cuBLAS reads this variable at its first product, which comes later.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)


def _blocks_to_recompute(segmenter: Segmenter, config: ComputeConfig) -> list[nn.Module]:
    """Return the blocks of the backbone that `config.recompute` asks for."""
    backbone = segmenter.backbone
    blocks = backbone.blocks()
    covered = {p for block in blocks for p in block.parameters()}
    if 2 * len(covered) < len(list(backbone.parameters())) or not blocks:
        raise ConfigError(
            f"compute.recompute cannot be used with the backbone '{segmenter.config.backbone}': "
            "most of its parameters are outside of 'Sequential' and 'ModuleList' stages.",
            "Use '--set compute.recompute=false', or override 'Backbone.blocks' and "
            "'Backbone.finest'.",
        )
    return backbone.finest() if config.recompute == "finest" else blocks


def _recompute(block: nn.Module) -> None:
    """Make `block` store its input only, and recompute its activations in the backward pass."""
    block.forward = partial(_forward_twice, block, block.forward)


def _forward_twice(
    block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(
        partial(forward, **options),
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (torch.enable_grad(), _frozen_statistics(block)),
    )


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged in the block, with the same operations for autograd."""
    norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted
