"""Replay of whole iterations as CUDA graphs: the host launches one graph instead of every kernel.

An iteration never waits for the host and its shapes never change. So the whole iteration (forward
and backward passes, optimizer step, memory refresh) can be captured once and replayed. A graph
reads its batch and its learning rates from fixed tensors. It writes its results to fixed tensors,
which the next replay overwrites.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pinmem_core.data.batches import Batch
from pinmem_core.methods.base import StepResult
from pinmem_core.methods.losses import Losses

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
            self._inputs = replace(
                batch, images=batch.images.clone(), labels=batch.labels.clone(), samples=()
            )
        else:
            self._inputs.images.copy_(batch.images)
            self._inputs.labels.copy_(batch.labels)

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
