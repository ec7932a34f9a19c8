"""The interface of a training method. Data, schedule, optimizer and checkpoint are shared."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from pinmem_core.config import Settings, TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.distributed import averaged_gradients
from pinmem_core.methods.losses import Losses
from pinmem_core.methods.meta import fast_weights
from pinmem_core.models import Segmenter
from pinmem_core.overrides import validated

MemoryUse = Literal["required", "optional", "none"]
_MEMORY: tuple[str, ...] = get_args(MemoryUse)


@dataclass(frozen=True)
class Sources:
    """Further batches of the sources, for methods that need more than the batch of a step.

    Attributes:
        load: Function that loads the batches of some iterations, which may exceed those of the run.
        epoch: Number of iterations with as many images as the sources hold.
    """

    load: Callable[[range], Iterable[Batch]]
    epoch: int


@dataclass(frozen=True)
class StepContext:
    """Everything that one step of a method works on.

    Attributes:
        segmenter: Network to train.
        batch: Batch of all domains; `batch.view(1)` is the second view of the images.
        inner_lr: Step size α of an inner step.
        iteration: Number of the iteration, from 0.
        sources: Further batches of the sources; None outside of a run.
    """

    segmenter: Segmenter
    batch: Batch
    inner_lr: float | Tensor
    iteration: int = 0
    sources: Sources | None = None


@dataclass(frozen=True)
class StepResult:
    """Result of one iteration.

    Attributes:
        losses: Losses by phase, e.g. "inner" and "outer".
        rewritten: Memory (K, D) that the outer phase read; None where the method writes none.
    """

    losses: Mapping[str, Losses]
    rewritten: Tensor | None = None


class Method(ABC):
    """A method of training on several domains.

    Args:
        config: Configuration of the run.
        scaler: Loss scaler for the backward passes; None for no scaling.

    Attributes:
        memory: Whether the network must have a memory, may have one (by default none), or must not.
        meta: Whether domains are split into meta-train and meta-test; this needs two or more.
        views: Number of views of each image that differ in their photometric augmentation; that of
            the first follows `augmentation.strong`, that of the others is strong.
        cuda_graph: Whether a step can be captured as a CUDA graph: it must not wait for the GPU,
            and must not depend on the iteration or on Python values that change.
        cached_features: Whether a step works on cached features of a frozen backbone: it must use
            the images for `Segmenter.encode` or `run` only.
        Config: Class of the method's own settings; the default has none.
        config: Configuration of the run.
        settings: Settings of the method's own, `config.method_config` as a `Config`.
        averages_last: Whether the last backward pass of a step averages over the processes. A
            caller that sums the gradients of several steps sets it to False, and averages the sum.

    Raises:
        ConfigError: A setting of the method is unknown or not allowed.
    """

    memory: ClassVar[MemoryUse]
    meta: ClassVar[bool]
    views: ClassVar[int] = 1
    cuda_graph: ClassVar[bool] = False
    cached_features: ClassVar[bool] = False
    Config: ClassVar[type[Settings]] = Settings

    def __init_subclass__(cls) -> None:
        """Name a wrong class attribute or constructor when the class is defined.

        Raises:
            TypeError: An attribute has a value that is not allowed, or the constructor cannot be
                called with a configuration and a loss scaler.
        """
        super().__init_subclass__()
        views: Any = cls.views
        if getattr(cls, "memory", "none") not in _MEMORY:
            raise TypeError(f"{cls.__name__}.memory must be {', '.join(map(repr, _MEMORY))}")
        if isinstance(views, bool) or not isinstance(views, int) or views < 1:
            raise TypeError(f"{cls.__name__}.views must be a number from 1, not {views!r}")
        if not (isinstance(cls.Config, type) and issubclass(cls.Config, Settings)):
            raise TypeError(f"{cls.__name__}.Config must be a subclass of Settings")
        try:
            signature(cls).bind("config", "scaler")
        except TypeError as error:
            how = f"{cls.__name__}(config, scaler) cannot be called: {error}"
            raise TypeError(how) from None

    def __init__(self, config: TrainConfig, scaler: GradScaler | None = None) -> None:
        self.config = config
        self.settings: Any = self.read_settings(config)
        self.scaler = scaler or GradScaler(enabled=False)
        self.averages_last = True

    @classmethod
    def read_settings(cls, config: TrainConfig) -> Settings:
        """Return the settings of the method's own.

        Raises:
            ConfigError: A setting is unknown or not allowed.
        """
        return validated(cls.Config, config.method_config, "method_config")

    @classmethod
    def adapters(cls, settings: Any) -> Mapping[str, Mapping[str, Any]]:
        """Return the adapters that the method inserts into the backbone: settings by name.

        They become a part of `config.model`, so that every checkpoint describes its network.

        Args:
            settings: Settings of the method's own, a `Config`.
        """
        return {}

    @classmethod
    def teachers(cls, settings: Any) -> Sequence[str]:
        """Return the models that the method learns from; the network has seen their images, too.

        Args:
            settings: Settings of the method's own, a `Config`.
        """
        return ()

    def setup(self, segmenter: Segmenter) -> None:  # noqa: B027
        """Prepare the training of a network, e.g. by hooks on some stages.

        It runs once, before the first step or before a resumed run loads its state. Changes that
        prediction needs belong in `adapters`. A module that becomes an attribute of `segmenter`,
        such as a discriminator, is trained and in snapshots, but not in checkpoints.
        """

    @abstractmethod
    def step(self, context: StepContext) -> StepResult:
        """Accumulate the gradients of one batch into `.grad`, with `backward`.

        The step sets the network to training mode. Parameters and memory stay unchanged. The
        running statistics of batch norm move once.
        """

    def refresh(self, context: StepContext) -> None:  # noqa: B027
        """Update the memory after the optimizer's step; do nothing without a memory."""

    def notices(self) -> list[str]:
        """Return sentences for the user after `setup`, e.g. that a loss is off, and why."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that a resumed run needs.

        Its tensors exist after `setup`, and keep their names and shapes.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Load the result of `state_dict`."""

    def backward(self, segmenter: Segmenter, loss: Tensor, *, last: bool = False) -> None:
        """Accumulate the (scaled) gradients of the mean loss over all processes.

        Args:
            segmenter: Network whose gradients are accumulated.
            loss: Loss of this process.
            last: Whether the rest of the step does not read the gradients. If `averages_last` is
                off, each process then keeps its own gradients.
        """
        if last and not self.averages_last:
            self.scaler.scale(loss).backward()
            return
        with averaged_gradients(segmenter):
            self.scaler.scale(loss).backward()

    def fast_weights(
        self, segmenter: Segmenter, inner_lr: float | Tensor
    ) -> AbstractContextManager[None]:
        """Return a context in which the parameters are θ' = θ - α·∇θ."""
        first = next(segmenter.parameters())
        scale = self.scaler.scale(torch.ones((), dtype=first.dtype, device=first.device))
        return fast_weights(segmenter, inner_lr / scale)

    def inner_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return images and labels of the inner step: of the meta-train domains, or of all."""
        return batch.all() if self.config.meta.inner == "all" else batch.of(batch.meta_train)


@torch.no_grad()
def rewrite_memory(segmenter: Segmenter, images: Tensor, labels: Tensor) -> None:
    """Write a batch into the memory with the current network in evaluation mode."""
    assert segmenter.memory is not None
    segmenter.eval()
    memory = segmenter.memory
    memory.slots.copy_(memory.write(segmenter.encode(images).feature, labels, memory.slots))
