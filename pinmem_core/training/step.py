"""One iteration: learning rates, gradients of the method, optimizer step, memory refresh."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch, step_seed
from pinmem_core.distributed import all_gather, all_reduce_mean, all_reduce_sum, rank
from pinmem_core.errors import PinMemError
from pinmem_core.methods import methods
from pinmem_core.methods.base import StepResult
from pinmem_core.methods.losses import mean_losses
from pinmem_core.models import Segmenter
from pinmem_core.training.compute import StepGraphs, prepare
from pinmem_core.training.optim import (
    build_optimizer,
    inner_learning_rate,
    learning_rate,
    set_learning_rate,
)
from pinmem_core.training.snapshots import Snapshot


class TrainStep:
    """Run iterations one at a time, without waiting for the GPU.

    Args:
        config: Configuration of the run.
        segmenter: Network to train; it is moved to `device` and set up as in `config.compute`.
        device: Device of the computation.

    Attributes:
        segmenter: Network after the set-up.
        optimizer: Optimizer of `config.optim`, with an initial state of zeros.
        scaler: Loss scaler of an fp16 run; disabled otherwise.
    """

    def __init__(self, config: TrainConfig, segmenter: Segmenter, device: torch.device) -> None:
        self.config = config
        self.segmenter = prepare(segmenter, config.compute, device)
        self.optimizer = build_optimizer(config.optim, self.segmenter)
        self.scaler = GradScaler(device.type, enabled=config.compute.precision == "fp16")
        self.method = methods.get(config.method)(config.loss, self.scaler, config.meta)
        self.method.averages_last = config.compute.accumulate == 1
        self.watch = LossWatch(device)
        self._inner_lr: float | Tensor = config.optim.inner_lr
        self._run: Callable[[Batch], StepResult] = self._learn
        if config.compute.graph and device.type == "cuda":
            self._inner_lr = torch.tensor(config.optim.inner_lr, device=device)
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=device)
            self._run = StepGraphs(self._learn)

    def step(self, iteration: int, batch: Batch) -> StepResult:
        """Train on a batch in `iteration`, counted from 0.

        Raises:
            PinMemError: A loss is not finite (on a GPU, `check` raises this error).
        """
        torch.manual_seed(step_seed(self.config.seed, iteration, rank()))
        self._set_rates(iteration)
        result = self._run(batch)
        self.watch.note(iteration, self._judged(result), batch)
        return result

    def restore(self, snapshot: Snapshot) -> None:
        """Restore the state of a snapshot."""
        snapshot.restore(self.segmenter, self.optimizer)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(snapshot.facts.scaler)

    def check(self) -> None:
        """Wait for the device, and raise an error if a loss was not finite.

        Raises:
            PinMemError: A loss was not finite, or gradients in fp16 overflow at any scale.
        """
        self.watch.check()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise PinMemError(
                "the gradients overflow in fp16 at any loss scale.",
                "Use '--set compute.precision=bf16', or float32.",
            )

    def _set_rates(self, iteration: int) -> None:
        """Set both learning rates; tensors (for a CUDA graph) are changed in place."""
        optim, span = self.config.optim, self.config.iterations
        lr = learning_rate(optim, iteration, span)
        inner_lr = inner_learning_rate(optim, iteration, span)
        set_learning_rate(self.optimizer, lr)
        kept = self._inner_lr
        self._inner_lr = kept.fill_(inner_lr) if isinstance(kept, Tensor) else inner_lr

    def _learn(self, batch: Batch) -> StepResult:
        """Run one whole iteration with the current learning rates, without waiting for the GPU."""
        result = self._add_gradients(batch, self._inner_lr)
        self._update(result)
        self.method.refresh(self.segmenter, batch)
        return result

    def _judged(self, result: StepResult) -> StepResult:
        """Return the losses that must be finite.

        In fp16 these are the losses of the first phase. The scaler itself skips steps that
        overflow, and after an inner step that overflowed, no later loss is finite.
        """
        if not self.scaler.is_enabled():
            return result
        first = next(iter(result.losses))
        return StepResult({first: result.losses[first]})

    def _add_gradients(self, batch: Batch, inner_lr: float | Tensor) -> StepResult:
        """Compute the gradients of the batch in `.grad`: of one step, or the mean of several.

        Processes average the sum of several steps' gradients once. An inner gradient is averaged in
        its own step, because the fast weights depend on it; averaging it again changes nothing.
        """
        self.optimizer.zero_grad()
        count = self.config.compute.accumulate
        if count == 1:
            return self.method.step(self.segmenter, batch, inner_lr)
        sums: dict[torch.nn.Parameter, torch.Tensor] = {}
        results = []
        for part in batch.parts(count):
            self.optimizer.zero_grad()  # an inner step uses only the gradient of its part
            results.append(self.method.step(self.segmenter, part, inner_lr))
            for parameter in self.segmenter.parameters():
                if parameter.grad is not None:
                    total = sums.setdefault(parameter, torch.zeros_like(parameter.grad))
                    total.add_(parameter.grad, alpha=1 / count)
        for parameter in self.segmenter.parameters():
            # With zero instead of None, weight decay and momentum would change a frozen parameter.
            parameter.grad = sums.get(parameter)
        all_reduce_mean(list(sums.values()))
        phases = results[0].losses
        return StepResult({p: mean_losses([r.losses[p] for r in results]) for p in phases})

    def _update(self, result: StepResult) -> None:
        """Step the optimizer, unless a loss is not finite."""
        self.watch.judge(self._judged(result))
        if not self.scaler.is_enabled():
            self.optimizer.found_inf = self.watch.bad  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()


class _Seen(NamedTuple):
    iteration: int
    terms: Mapping[str, Mapping[str, Tensor]]
    samples: tuple[tuple[str, ...], ...]


class LossWatch:
    """Check the losses of every iteration.

    Reading a number from a GPU waits for all of its queued work. So the flag `bad` stays on the
    device, where the optimizer skips its step, and the host reads it when it waits anyway. On a CPU
    the host reads the flag in every iteration.

    Attributes:
        bad: Flag, 0-dim float: 1 after a loss was not finite on any process, otherwise 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.bad = torch.zeros((), device=device)
        self._waits = device.type != "cpu"
        self._seen: list[_Seen] = []

    def judge(self, result: StepResult) -> None:
        """Set `bad` on the device if a loss is not finite; call this before the optimizer steps."""
        totals = torch.stack([losses.total.detach() for losses in result.losses.values()])
        bad = all_reduce_sum((~totals.isfinite()).any().to(self.bad))
        torch.maximum(self.bad, bad.clamp(max=1), out=self.bad)

    def note(self, iteration: int, result: StepResult, batch: Batch) -> None:
        """Record the losses of an iteration, counted from 0, for the message of `check`.

        Raises:
            PinMemError: A loss is not finite, and the device is a CPU.
        """
        terms = {
            phase: {name: term.detach() for name, term in losses.terms.items()}
            for phase, losses in result.losses.items()
        }
        self._seen.append(_Seen(iteration, terms, batch.samples))
        if not self._waits:
            self.check()

    def check(self) -> None:
        """Raise an error if a loss was not finite since the last call.

        Raises:
            PinMemError: A loss was not finite; the optimizer has not stepped since.
        """
        seen, self._seen = self._seen, []
        if not self.bad:
            return
        causes = all_gather(next(filter(None, map(_cause, seen)), None))
        raise PinMemError(
            f"the loss is not finite in {next(filter(None, causes))}; "
            "the optimizer has not stepped.",
            "Lower the learning rate ('--set optim.lr=...'), or check these samples.",
        )


def _cause(seen: _Seen) -> str | None:
    """Return the terms of an iteration that are not finite, and its samples; None if all are."""
    bad = {
        phase: names
        for phase, terms in seen.terms.items()
        if (names := [name for name, term in terms.items() if not term.isfinite()])
    }
    if not bad:
        return None
    where = "; ".join(f"{phase}: {', '.join(names)}" for phase, names in bad.items())
    samples = ", ".join(name for domain in seen.samples for name in domain)
    return f"iteration {seen.iteration + 1} ({where}), with the samples {samples}"
