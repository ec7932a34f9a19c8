"""Detection of losses that are not finite, without synchronising with the GPU."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pinmem_core.data.batches import Batch
from pinmem_core.distributed import all_gather, sum_over_ranks
from pinmem_core.errors import PinMemError
from pinmem_core.methods.base import StepResult


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
        bad = sum_over_ranks((~totals.isfinite()).any().to(self.bad))
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
