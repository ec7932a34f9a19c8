"""How fast a run goes, and how much memory it takes."""

import sys
import time

import torch

from pinmem_core.events import Speed


class Pace:
    """Counts images against the clock.

    Args:
        images: Of one iteration, on all ranks.
        device: That computes.
    """

    def __init__(self, images: int, device: torch.device) -> None:
        self.images = images
        self.device = device
        self._began = self._told = time.perf_counter()
        self._iterations = self._since = 0

    def count(self) -> None:
        """Count an iteration."""
        self._iterations += 1
        self._since += 1

    def tell(self) -> Speed:
        """Return the speed since this was last asked."""
        now = time.perf_counter()
        speed = self._since * self.images / (now - self._told)
        self._told, self._since = now, 0
        return Speed(speed, peak_memory(self.device))

    def summary(self) -> str:
        """Return a sentence on all that was counted."""
        seconds = time.perf_counter() - self._began
        speed = self._iterations * self.images / seconds
        peak = peak_memory(self.device)
        memory = f", at most {peak / 1e9:.1f} GB in use" if peak else ""
        return (
            f"trained {self._iterations} iterations in {_duration(seconds)}, "
            f"{speed:.1f} images/s{memory}"
        )


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far: of the GPU, or of this process where there is none.

    Windows does not count those of a process; there, 0 is returned.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
