"""One iteration: learning rates, gradients of the method, optimizer step, memory refresh."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from pinmem_core.checkpoints.checkpoint import state_dict_mismatch
from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch, Domain, step_seed
from pinmem_core.data.loader import DomainLoader
from pinmem_core.distributed import (
    all_gather,
    all_reduce_mean,
    all_reduce_sum,
    rank,
    world_size,
)
from pinmem_core.errors import ConfigError, DataError, PinMemError
from pinmem_core.methods import methods
from pinmem_core.methods.base import Method, Sources, StepContext, StepResult
from pinmem_core.methods.losses import mean_losses
from pinmem_core.models import Segmenter
from pinmem_core.sharding import clip_gradients, gathered, is_sharded, shard, sharded_like
from pinmem_core.training.compute import StepGraphs, prepare
from pinmem_core.training.optim import (
    WeightAverage,
    build_optimizer,
    estimate_statistics,
    inner_learning_rate,
    learning_rate,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
)
from pinmem_core.training.snapshots import Snapshot, changed_settings, training_settings


class TrainStep:
    """Run iterations one at a time, without waiting for the GPU.

    Args:
        config: Configuration of the run.
        segmenter: Network to train; it is moved to `device` and set up as in `config.compute`.
        device: Device of the computation.

    Attributes:
        segmenter: Network after the set-up.
        method: Training method.
        method_tensors: State of the method after its set-up, by name, without values.
        optimizer: Optimizer of `config.optim`.
        average: Moving average of the weights; None without `optim.ema`.
        initial: Weights and batch-norm statistics before the first iteration; empty without
            `optim.initial_share`.
        scaler: Loss scaler of an fp16 run; disabled otherwise.
        loss_check: Check of all losses.
        sources: Further batches of the sources, for the method; None until a run sets it.
    """

    def __init__(self, config: TrainConfig, segmenter: Segmenter, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.scaler = GradScaler(device.type, enabled=config.compute.precision == "fp16")
        self.method = methods.get(config.method)(config, self.scaler)
        self.method.averages_last = config.compute.accumulate == 1
        segmenter.freeze(config.optim.freeze)
        self.segmenter = prepare(segmenter, config.compute, device)
        shapes = {name: value.shape for name, value in self.segmenter.state_dict().items()}
        self.method.setup(self.segmenter)
        self._own = self._unchanged(shapes)
        self.method_tensors = {
            name: torch.empty_like(value, device="meta")
            for name, value in self._tensors_of_method().items()
        }
        if config.compute.shard and world_size() > 1:
            shard(self.segmenter.backbone, self.segmenter.backbone.blocks(), device)
        self.optimizer = build_optimizer(config.optim, self.segmenter)
        ema = config.optim.ema
        self.average = None if ema is None else WeightAverage(self.segmenter, ema)
        self.initial = self._weights() if config.optim.initial_share else {}
        self.sources: Sources | None = None
        self.loss_check = FiniteLossCheck(device, deferred=device.type != "cpu")
        self._inner_lr: float | Tensor = config.optim.inner_lr
        self._iteration = 0
        self._stepped = False
        self._run: Callable[[Batch], StepResult] = self._learn
        if config.compute.graph and device.type == "cuda":
            self._inner_lr = torch.tensor(config.optim.inner_lr, device=device)
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=device)
            if not getattr(self.optimizer, "_step_supports_amp_scaling", False):
                raise ConfigError(
                    f"compute.graph contradicts the optimizer '{config.optim.name}', which waits "
                    "for the GPU.",
                    "Set 'compute.graph' to false.",
                )
            self._run = StepGraphs(self._learn)

    def _unchanged(self, shapes: Mapping[str, torch.Size]) -> frozenset[str]:
        """Return the names of `shapes`, the tensors of the network before the method's set-up.

        Modules that the method adds are trained and in snapshots, but not in checkpoints.
        """
        now = self.segmenter.state_dict()
        changed = [n for n, shape in shapes.items() if n not in now or now[n].shape != shape]
        if changed:
            raise ConfigError(
                f"the method '{self.config.method}' changes '{changed[0]}' of the network in "
                "'setup', so that its checkpoints could not be loaded.",
                "Make such changes with 'Method.adapters'.",
            )
        return frozenset(shapes)

    def _tensors_of_method(self) -> dict[str, Tensor]:
        state = self.method.state_dict()
        if state and type(self.method).load_state_dict is Method.load_state_dict:
            raise ConfigError(
                f"the method '{self.config.method}' has a 'state_dict' but no 'load_state_dict': a "
                "resumed run would lose its state."
            )
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise ConfigError(
                    f"'{name}' in the state of the method '{self.config.method}' is a "
                    f"{type(value).__name__}, no tensor.",
                    "Return a tensor, e.g. 'torch.tensor(3)'.",
                )
        return state

    def loader(self, domains: Sequence[Domain], iterations: range) -> DomainLoader:
        """Return the loader of this process's share of the batches of some iterations."""
        return DomainLoader.of(
            domains,
            self.config,
            iterations,
            device=self.device,
            shard=(rank(), world_size()),
            normalization=self.segmenter.normalization,
            views=self.method.views,
        )

    def begin(self) -> None:
        """Take the present weights as those that all averages of weights start from."""
        if self.average:
            self.average.restart()
        if self.initial:
            self.initial = self._weights()

    def _weights(self) -> dict[str, Tensor]:
        """Return copies of the trained parameters and of the batch-norm statistics."""
        trained = {n for n, p in self.segmenter.named_parameters() if p.requires_grad}
        return {
            name: value.detach().clone()
            for name, value in self.segmenter.state_dict().items()
            if name in trained or name.endswith(("running_mean", "running_var"))
        }

    def step(self, iteration: int, batch: Batch) -> StepResult:
        """Train on a batch in `iteration`, counted from 0.

        Raises:
            ConfigError: The method returned no losses or gradients, or a resumed run would lose a
                state of the optimizer or the method.
            PinMemError: A loss is not finite (on a GPU, `check` raises this error).
        """
        seed = step_seed(self.config.seed, iteration, rank())
        torch.manual_seed(seed)
        random.seed(seed)  # a method may draw with Python or numpy
        np.random.seed(seed)
        self._iteration = iteration
        self._set_rates(iteration)
        result = self._run(batch)
        if not self._stepped:
            self.states()  # raises if a resumed run would lose something, before hours have passed
            self._stepped = True
        self.loss_check.record(iteration, self._checked(result), batch)
        return result

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a snapshot, of the network and what trains it; some are sharded.

        Raises:
            ConfigError: A resumed run would lose a state of the optimizer or the method.
        """
        of_method = self._tensors_of_method()
        if problem := state_dict_mismatch(of_method, self.method_tensors, finite=False):
            raise ConfigError(
                f"the state of the method '{self.config.method}' is not that after 'setup', into "
                f"which a resumed run loads it: {problem}.",
                "Create all tensors in 'setup', and keep their names and shapes.",
            )
        return {
            "model": self.segmenter.state_dict(),
            "optimizer": optimizer_state(self.optimizer, self.segmenter)[0],
            "method": of_method,
            "ema": self.average.average if self.average else {},
            "initial": self.initial,
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Restore the state of a snapshot.

        Raises:
            DataError: The tensors or the settings are not those of this network and its optimizer.
        """
        states, own = snapshot.states(), self.states()
        if not own["optimizer"]:  # the state is created in the first step
            parameters = dict(self.segmenter.named_parameters())
            own["optimizer"] = {
                key: value
                for key, value in states["optimizer"].items()
                if key.rpartition("/")[0] in parameters
            }
        others = changed_settings(snapshot.meta.settings, training_settings(self.config))
        problem = next((f"it was trained with another '{key}'" for key in others), None)
        for kind, expected in own.items():
            finite = kind not in ("optimizer", "method")
            given = states.get(kind, {})
            problem = problem or state_dict_mismatch(given, expected, finite=finite)
        if problem:
            raise DataError(
                f"the snapshot {snapshot.folder} does not fit the run's configuration: {problem}.",
                "If you edited the run's config.json, undo this, or start a new run.",
            )
        model = own["model"]
        self.segmenter.load_state_dict(
            {name: sharded_like(value, model[name]) for name, value in states["model"].items()}
        )
        load_optimizer_state(
            self.optimizer, self.segmenter, states["optimizer"], snapshot.meta.optimizer
        )
        self.method.load_state_dict(states.get("method", {}))
        for kind in ("ema", "initial"):
            for name, value in states.get(kind, {}).items():
                own[kind][name].copy_(sharded_like(value, own[kind][name]))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(snapshot.meta.scaler)

    def network(self, batches: Iterable[Batch]) -> Segmenter:
        """Return a plain copy of the network for prediction; every process must call this.

        With `optim.ema`, its weights are the averages, and its batch-norm statistics are those of
        `batches` under these weights. With `optim.initial_share`, weights and statistics are the
        weighted means of the initial ones and these.

        Source: WiSE-FT, Wortsman et al., CVPR 2022.

        Args:
            batches: Batches of the sources; not read without `optim.ema`.
        """
        if self.average is None:
            state = gathered(self.segmenter.state_dict())
        else:
            kept = [(buffer, buffer.clone()) for buffer in self.segmenter.buffers()]
            torch.manual_seed(self.config.seed)
            with self.average.applied():
                estimate_statistics(self.segmenter, (batch.all()[0] for batch in batches))
                state = {n: v.clone() for n, v in gathered(self.segmenter.state_dict()).items()}
            for buffer, value in kept:
                buffer.copy_(value)
        share = self.config.optim.initial_share
        for name, value in gathered(self.initial).items():
            state[name] = torch.lerp(state[name], value, share)
        plain = Segmenter(self.config.model)
        plain.load_state_dict({name: state[name] for name in self._own})
        return plain

    def check(self) -> None:
        """Wait for the device, and raise an error if a loss was not finite.

        Raises:
            PinMemError: A loss was not finite, or gradients in fp16 overflow at any scale.
        """
        self.loss_check.check()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise PinMemError(
                "the gradients overflow in fp16 at any loss scale.",
                "Use '--set compute.precision=bf16', or float32.",
            )

    def _set_rates(self, iteration: int) -> None:
        """Set both learning rates; tensors (for a CUDA graph) are changed in place."""
        optim, span = self.config.optim, self.config.iterations
        set_learning_rate(self.optimizer, learning_rate(optim, iteration, span))
        inner_lr, kept = inner_learning_rate(optim, iteration, span), self._inner_lr
        self._inner_lr = kept.fill_(inner_lr) if isinstance(kept, Tensor) else inner_lr

    def _context(self, batch: Batch) -> StepContext:
        rate, iteration = self._inner_lr, self._iteration
        return StepContext(self.segmenter, batch, rate, iteration, self.sources)

    def _learn(self, batch: Batch) -> StepResult:
        """Run one whole iteration with the current learning rates, without waiting for the GPU."""
        result = self._add_gradients(batch)
        self._update(result)
        self.method.refresh(self._context(batch))
        return result

    def _checked(self, result: StepResult) -> StepResult:
        """Return the losses that must be finite.

        In fp16 these are the losses of the first phase. The scaler itself skips steps that
        overflow, and after an inner step that overflowed, no later loss is finite.
        """
        if not self.scaler.is_enabled():
            return result
        first = next(iter(result.losses))
        return StepResult({first: result.losses[first]})

    def _add_gradients(self, batch: Batch) -> StepResult:
        """Compute the gradients of the batch in `.grad`: of one step, or the mean of several.

        Processes average the sum of several steps' gradients once; FSDP averages those of sharded
        parameters in each step. An inner gradient is averaged in its own step, because the fast
        weights depend on it; averaging it again changes nothing.
        """
        self.optimizer.zero_grad()
        count = self.config.compute.accumulate
        if count == 1:
            return self._step(batch)
        sums: dict[torch.nn.Parameter, torch.Tensor] = {}
        results = []
        for part in batch.parts(count):
            self.optimizer.zero_grad()  # an inner step uses only the gradient of its part
            results.append(self._step(part))
            for parameter in self.segmenter.parameters():
                if parameter.grad is not None:
                    total = sums.setdefault(parameter, torch.zeros_like(parameter.grad))
                    total.add_(parameter.grad, alpha=1 / count)
        for parameter in self.segmenter.parameters():
            # With zero instead of None, weight decay and momentum would change a frozen parameter.
            parameter.grad = sums.get(parameter)
        all_reduce_mean([total for p, total in sums.items() if not is_sharded(p)])
        phases = results[0].losses
        return StepResult({p: mean_losses([r.losses[p] for r in results]) for p in phases})

    def _step(self, batch: Batch) -> StepResult:
        """Run the method's step, and check that it did what the loop relies on."""
        result = self.method.step(self._context(batch))
        if not isinstance(result, StepResult) or not result.losses:
            problem = "returns no StepResult with losses"
        elif not all(
            isinstance(value, Tensor) and value.ndim == 0
            for losses in result.losses.values()
            for value in (losses.total, *losses.terms.values())
        ):
            problem = "returns a loss that is no tensor of a single value, of 0 dimensions"
        elif all(p.grad is None for group in self.optimizer.param_groups for p in group["params"]):
            problem = "computes no gradients: it must call 'Method.backward'"
        else:
            return result
        raise ConfigError(f"the step of the method '{self.config.method}' {problem}.")

    def _update(self, result: StepResult) -> None:
        """Step the optimizer and the average, unless a loss is not finite."""
        bad = self.loss_check.update(self._checked(result))
        if self.config.optim.clip is not None:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.segmenter.parameters(), self.config.optim.clip)
        if not self.scaler.is_enabled():
            if getattr(self.optimizer, "_step_supports_amp_scaling", False):
                self.optimizer.found_inf = bad  # type: ignore[attr-defined]
            elif bad:  # waits for the device; torch's fused optimizers do not
                return
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()


class _Recorded(NamedTuple):
    iteration: int
    terms: Mapping[str, Mapping[str, Tensor]]
    samples: tuple[tuple[str, ...], ...]


class FiniteLossCheck:
    """Check that the losses of every iteration are finite.

    Reading a number from a GPU waits for all of its queued work. So the flag `bad` stays on the
    device, where the optimizer skips its step, and the host reads it when it waits anyway.

    Args:
        device: Device of the losses.
        deferred: Whether only `check` reads the flag; otherwise `record` reads it, too.

    Attributes:
        bad: Flag, 0-dim float: 1 after a loss was not finite on any process, otherwise 0.
    """

    def __init__(self, device: torch.device, *, deferred: bool) -> None:
        self.bad = torch.zeros((), device=device)
        self._deferred = deferred
        self._recorded: list[_Recorded] = []

    def update(self, result: StepResult) -> Tensor:
        """Set `bad` on the device if a loss is not finite, and return it."""
        totals = torch.stack([losses.total.detach() for losses in result.losses.values()])
        bad = all_reduce_sum((~totals.isfinite()).any().to(self.bad))
        return torch.maximum(self.bad, bad.clamp(max=1), out=self.bad)

    def record(self, iteration: int, result: StepResult, batch: Batch) -> None:
        """Record the losses of an iteration, counted from 0, for the message of `check`.

        Raises:
            PinMemError: A loss is not finite, and the check is not deferred.
        """
        terms = {
            phase: {name: term.detach() for name, term in losses.terms.items()}
            for phase, losses in result.losses.items()
        }
        self._recorded.append(_Recorded(iteration, terms, batch.samples))
        if not self._deferred:
            self.check()

    def check(self) -> None:
        """Raise an error if a loss was not finite since the last call.

        Raises:
            PinMemError: A loss was not finite; the optimizer has not stepped since.
        """
        recorded, self._recorded = self._recorded, []
        if not self.bad:
            return
        causes = all_gather(next(filter(None, map(_cause, recorded)), None))
        raise PinMemError(
            f"the loss is not finite in {next(filter(None, causes))}; "
            "the optimizer has not stepped.",
            "Lower the learning rate ('--set optim.lr=...'), or check these samples.",
        )


def _cause(recorded: _Recorded) -> str | None:
    """Return the terms of an iteration that are not finite, and its samples; None if all are."""
    bad = {
        phase: names
        for phase, terms in recorded.terms.items()
        if (names := [name for name, term in terms.items() if not term.isfinite()])
    }
    if not bad:
        return None
    where = "; ".join(f"{phase}: {', '.join(names)}" for phase, names in bad.items())
    samples = ", ".join(name for domain in recorded.samples for name in domain)
    return f"iteration {recorded.iteration + 1} ({where}), with the samples {samples}"
