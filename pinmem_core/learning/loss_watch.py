"""No step is taken from a loss that is not finite, and no time is lost with asking."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pinmem_core.errors import PinMemError
from pinmem_core.learning.method import StepResult
from pinmem_core.loading import Batch
from pinmem_core.ranks import from_all, sum_over_ranks


class _Seen(NamedTuple):
    iteration: int
    terms: Mapping[str, Mapping[str, Tensor]]
    samples: tuple[tuple[str, ...], ...]


class LossWatch:
    """Looks at every iteration's losses.

    To read a number from a GPU is to wait for all that it has to do. So the verdict stays on the
    device, where the optimizer obeys it, and the host reads it when it waits anyway. On a CPU it
    reads at once.

    Attributes:
        bad: 0-dim float: 1 from the first loss on that is not finite, on any rank; else 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.bad = torch.zeros((), device=device)
        self._waits = device.type != "cpu"
        self._seen: list[_Seen] = []

    def judge(self, result: StepResult) -> None:
        """Set `bad` if a loss is not finite, before the optimizer steps; all on the device."""
        totals = torch.stack([losses.total.detach() for losses in result.losses.values()])
        bad = sum_over_ranks((~totals.isfinite()).any().to(self.bad))
        torch.maximum(self.bad, bad.clamp(max=1), out=self.bad)

    def note(self, iteration: int, result: StepResult, batch: Batch) -> None:
        """Remember the losses of an iteration, counted from 0, for the message of `check`.

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
        """Read the verdict over what was looked at since the last time.

        Raises:
            PinMemError: A loss was not finite; nothing has been learned since.
        """
        seen, self._seen = self._seen, []
        if not self.bad:
            return
        told = from_all(next(filter(None, map(_complaint, seen)), None))
        raise PinMemError(
            f"the loss is not finite in {next(filter(None, told))}; the optimizer has not stepped.",
            "Lower the learning rate ('--set optim.lr=...'), or look at these samples.",
        )


def _complaint(seen: _Seen) -> str | None:
    """Return which terms of an iteration are not finite, and its samples; None if all are."""
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
