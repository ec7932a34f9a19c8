"""How a step is computed: precision, memory layout, recomputation, compilation, CUDA graphs."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pinmem_core.config import ComputeConfig
from pinmem_core.data.batches import Batch
from pinmem_core.devices import keep_freed_memory
from pinmem_core.distributed import world_size
from pinmem_core.errors import ConfigError
from pinmem_core.methods.base import StepResult
from pinmem_core.methods.losses import Losses
from pinmem_core.models import PRECISIONS, Segmenter
from pinmem_core.models.backbones.base import blocks_of, called_in
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
            block.forward = partial(_forward_twice, block, block.forward)
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
    stages = backbone.stages()
    if not stages:
        raise ConfigError(
            f"compute.recompute cannot be used with the backbone '{segmenter.config.backbone}': "
            "it has no stages.",
            "Use '--set compute.recompute=false', or override 'Backbone.stages'.",
        )
    if config.recompute != "finest":
        return backbone.blocks()
    first = stages[0]
    # FSDP gathers a block at a time, also when it is recomputed
    return blocks_of(first) if config.shard else called_in(first, backbone)


def _forward_twice(
    block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any
) -> Any:
    """Store the input of `block` only, and recompute its activations in the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
    tracking = [norm.track_running_stats for norm in norms]
    return checkpoint(
        partial(forward, **options),
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (torch.enable_grad(), _frozen_statistics(norms, tracking)),
    )


@contextmanager
def _frozen_statistics(norms: Sequence[_BatchNorm], tracking: Sequence[bool]) -> Iterator[None]:
    """Keep running statistics unchanged in the block, with the operations of the forward pass."""
    kept = [(norm.momentum, norm.num_batches_tracked, norm.track_running_stats) for norm in norms]
    for norm, tracked in zip(norms, tracking, strict=True):
        norm.momentum, norm.num_batches_tracked, norm.track_running_stats = 0.0, None, tracked
    try:
        yield
    finally:
        for norm, values in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked, norm.track_running_stats = values


Split = tuple[tuple[int, ...], tuple[int, ...]]
Learn = Callable[[Batch], StepResult]

WARM_UP = 3
"""Iterations before the first capture; they select cuDNN's algorithms and compile."""
_LIMIT = 32
"""Maximum number of graphs, one per split into meta-train and meta-test domains."""


class StepGraphs:
    """Run iterations as CUDA graphs after a warm-up, with one graph per split of the domains.

    Args:
        learn: Function that runs one whole iteration on a batch. It must not wait for the GPU, and
            must change its state (parameters, buffers, learning rates) in place.
    """

    def __init__(self, learn: Learn) -> None:
        self._learn = learn
        self._graphs: dict[Split, tuple[torch.cuda.CUDAGraph, StepResult]] = {}
        self._warm: dict[tuple[int, int], int] = {}
        self._inputs: Batch | None = None
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, batch: Batch) -> StepResult:
        """Run one iteration; later iterations do not overwrite its result."""
        split = batch.meta_train, batch.meta_test
        sizes = len(split[0]), len(split[1])
        known = split in self._graphs
        if not known and (self._warm.get(sizes, 0) < WARM_UP or len(self._graphs) == _LIMIT):
            self._warm[sizes] = self._warm.get(sizes, 0) + 1
            return self._warm_up(batch)
        self._set_inputs(batch)
        if not known:
            self._graphs[split] = self._capture(batch)
        graph, result = self._graphs[split]
        graph.replay()
        return _cloned(result)

    def _warm_up(self, batch: Batch) -> StepResult:
        """Run on the capture stream, so that a later capture uses the same state."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._learn(batch)
        current.wait_stream(self._stream)
        return result

    def _set_inputs(self, batch: Batch) -> None:
        if self._inputs is None:
            self._inputs = replace(batch.map(torch.clone), samples=())
        else:
            new = (batch.images, batch.labels, *batch.more_views)
            held = (self._inputs.images, self._inputs.labels, *self._inputs.more_views)
            for tensor, value in zip(held, new, strict=True):
                tensor.copy_(value)

    def _capture(self, batch: Batch) -> tuple[torch.cuda.CUDAGraph, StepResult]:
        """Capture an iteration; this computes nothing and changes no state."""
        assert self._inputs is not None
        inputs = replace(self._inputs, meta_train=batch.meta_train, meta_test=batch.meta_test)
        graph = torch.cuda.CUDAGraph()
        # Allows CUDA calls of other threads, such as the loader's thread that pins memory.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            result = self._learn(inputs)
        return graph, result


def _cloned(result: StepResult) -> StepResult:
    losses = {
        phase: Losses(
            {name: term.detach().clone() for name, term in of_phase.terms.items()},
            of_phase.total.detach().clone(),
        )
        for phase, of_phase in result.losses.items()
    }
    rewritten: Tensor | None = result.rewritten
    return StepResult(losses, None if rewritten is None else rewritten.detach().clone())
