"""One iteration of a run: rates, gradients by the method, the optimizer's step, the memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from pinmem_core.config import TrainConfig
from pinmem_core.errors import PinMemError
from pinmem_core.learning.compute import prepare
from pinmem_core.learning.cuda_graph import StepGraphs
from pinmem_core.learning.loss_watch import LossWatch
from pinmem_core.learning.losses import mean_losses
from pinmem_core.learning.method import StepResult
from pinmem_core.learning.methods import methods
from pinmem_core.learning.schedule import inner_learning_rate, learning_rate
from pinmem_core.learning.snapshots import Snapshot
from pinmem_core.loading import Batch
from pinmem_core.loading.domains import step_seed
from pinmem_core.model import Segmenter
from pinmem_core.ranks import average_over_ranks, rank


class Iteration:
    """Takes a run's iterations, one at a time; nothing in one makes the host wait for a GPU.

    Args:
        config: Of the run.
        segmenter: Learns; is moved to `device` and set up to compute as `config.compute` says.
        device: Where to compute.

    Attributes:
        segmenter: As set up.
        optimizer: SGD, its momentum buffers zero at first.
        scaler: Scales the loss of a half-precision (fp16) run; idle in any other.
    """

    def __init__(self, config: TrainConfig, segmenter: Segmenter, device: torch.device) -> None:
        self.config = config
        self.segmenter = prepare(segmenter, config.compute, device)
        self.optimizer = _optimizer(config, self.segmenter)
        self.scaler = GradScaler(device.type, enabled=config.compute.precision == "fp16")
        self.method = methods.get(config.method)(config.loss, self.scaler, config.meta)
        self.method.averages_last = config.compute.accumulate == 1
        self.watch = LossWatch(device)
        self._inner_lr: float | Tensor = config.optim.inner_lr
        self._run: Callable[[Batch], StepResult] = self._learn
        if config.compute.graph and device.type == "cuda":
            self._inner_lr = torch.tensor(config.optim.inner_lr, device=device)
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(config.optim.lr, device=device)
            self._run = StepGraphs(self._learn)

    def step(self, iteration: int, batch: Batch) -> StepResult:
        """Learn from a batch in `iteration`, counted from 0.

        Raises:
            PinMemError: A loss is not finite (on a GPU it is `check` that says so).
        """
        torch.manual_seed(step_seed(self.config.seed, iteration, rank()))
        self._set_rates(iteration)
        result = self._run(batch)
        self.watch.note(iteration, self._judged(result), batch)
        return result

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to the state that a snapshot holds."""
        snapshot.restore(self.segmenter, self.optimizer)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(snapshot.facts.scaler)

    def check(self) -> None:
        """Wait for the device, and say so if something went wrong on it.

        Raises:
            PinMemError: A loss was not finite, or gradients in fp16 overflow at any scale.
        """
        self.watch.check()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise PinMemError(
                "the gradients overflow in fp16, however small the loss is made.",
                "Use '--set compute.precision=bf16', or float32.",
            )

    def _set_rates(self, iteration: int) -> None:
        """Set both learning rates; those that a CUDA graph reads are tensors and stay in place."""
        optim, span = self.config.optim, self.config.iterations
        lr = learning_rate(optim, iteration, span)
        inner_lr = inner_learning_rate(optim, iteration, span)
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else lr
        kept = self._inner_lr
        self._inner_lr = kept.fill_(inner_lr) if isinstance(kept, Tensor) else inner_lr

    def _learn(self, batch: Batch) -> StepResult:
        """Take one whole iteration at the rates that are set; the host waits for nothing."""
        result = self._add_gradients(batch, self._inner_lr)
        self._update(result)
        self.method.refresh(self.segmenter, batch)
        return result

    def _judged(self, result: StepResult) -> StepResult:
        """Return the losses that must be finite.

        In fp16 that is the first phase: the scaler skips steps itself, and after an inner step that
        overflowed nothing else is finite.
        """
        if not self.scaler.is_enabled():
            return result
        first = next(iter(result.losses))
        return StepResult({first: result.losses[first]})

    def _add_gradients(self, batch: Batch, inner_lr: float | Tensor) -> StepResult:
        """Leave the gradient of the batch in `grad`: that of one step, or the mean of several.

        Ranks average the sum of several steps' gradients once. An inner gradient is averaged in
        its own step, because the fast weights follow it; averaging it again changes nothing.
        """
        self.optimizer.zero_grad()
        count = self.config.compute.accumulate
        if count == 1:
            return self.method.step(self.segmenter, batch, inner_lr)
        sums: dict[torch.nn.Parameter, torch.Tensor] = {}
        results = []
        for part in batch.parts(count):
            self.optimizer.zero_grad()  # an inner step goes by the gradient of its part alone
            results.append(self.method.step(self.segmenter, part, inner_lr))
            for parameter in self.segmenter.parameters():
                if parameter.grad is not None:
                    total = sums.setdefault(parameter, torch.zeros_like(parameter.grad))
                    total.add_(parameter.grad, alpha=1 / count)
        for parameter in self.segmenter.parameters():
            # A zero instead of None would let weight decay and momentum move a frozen parameter.
            parameter.grad = sums.get(parameter)
        average_over_ranks(list(sums.values()))
        phases = results[0].losses
        return StepResult({p: mean_losses([r.losses[p] for r in results]) for p in phases})

    def _update(self, result: StepResult) -> None:
        """Take the optimizer's step, unless a loss is not finite."""
        self.watch.judge(self._judged(result))
        if not self.scaler.is_enabled():
            self.optimizer.found_inf = self.watch.bad  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _optimizer(config: TrainConfig, segmenter: Segmenter) -> torch.optim.SGD:
    optim = config.optim
    optimizer = torch.optim.SGD(
        segmenter.parameters(),
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        fused=True,  # skips a step without asking the host
    )
    for parameter in segmenter.parameters():  # a skipped first step would leave them undefined
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
