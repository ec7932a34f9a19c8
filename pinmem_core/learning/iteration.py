"""One iteration of a run: rates, gradients by the method, the optimizer's step, the memory."""

import torch
from torch.amp.grad_scaler import GradScaler

from pinmem_core.config import TrainConfig
from pinmem_core.errors import PinMemError
from pinmem_core.learning.compute import prepare
from pinmem_core.learning.loss_watch import LossWatch
from pinmem_core.learning.losses import mean_losses
from pinmem_core.learning.method import StepResult
from pinmem_core.learning.methods import methods
from pinmem_core.learning.schedule import inner_learning_rate, learning_rate
from pinmem_core.learning.snapshots import Snapshot
from pinmem_core.loading import Batch
from pinmem_core.loading.domains import step_seed
from pinmem_core.model import Segmenter
from pinmem_core.ranks import rank


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
        self.watch = LossWatch(device)

    def step(self, iteration: int, batch: Batch) -> StepResult:
        """Learn from a batch in `iteration`, counted from 0.

        Raises:
            PinMemError: A loss is not finite (on a GPU it is `check` that says so).
        """
        config = self.config
        torch.manual_seed(step_seed(config.seed, iteration, rank()))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, iteration, config.iterations)
        inner_lr = inner_learning_rate(config.optim, iteration, config.iterations)
        result = self._add_gradients(batch, inner_lr)
        self._update(iteration, result, batch)
        self.method.refresh(self.segmenter, batch)
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

    def _add_gradients(self, batch: Batch, inner_lr: float) -> StepResult:
        """Leave the gradient of the batch in `grad`: that of one step, or the mean of several."""
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
        phases = results[0].losses
        return StepResult({p: mean_losses([r.losses[p] for r in results]) for p in phases})

    def _update(self, iteration: int, result: StepResult, batch: Batch) -> None:
        """Take the optimizer's step, unless a loss is not finite."""
        if self.scaler.is_enabled():
            # It skips steps itself, and after an inner step that overflowed nothing else is finite.
            first = next(iter(result.losses))
            self.watch.look(iteration, StepResult({first: result.losses[first]}), batch)
        else:
            self.watch.look(iteration, result, batch)
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
