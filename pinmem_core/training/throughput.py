"""The speed and the memory of a run, and durations in words."""

import sys
import time

import torch

from pinmem_core.events import Speed

_FIRST_SECONDS = 5.0


class Throughput:
    """Measure the images per second.

    Args:
        images: Images per iteration, over all processes.
        device: Device of the computation.
        announced: Whether the time of the run is known already.
    """

    def __init__(self, images: int, device: torch.device, *, announced: bool = False) -> None:
        self.images = images
        self.device = device
        self._began = self._last = time.perf_counter()
        self._iterations = self._since = 0
        self._announced = announced

    def count(self) -> None:
        """Count an iteration."""
        self._iterations += 1
        self._since += 1

    def speed(self) -> Speed:
        """Return the speed since the last call."""
        now = time.perf_counter()
        images_per_second = self._since * self.images / (now - self._last)
        self._last, self._since = now, 0
        return Speed(images_per_second, peak_memory(self.device))

    def remaining(self, iterations: int) -> str | None:
        """Return a sentence about the time for `iterations` more, once, if they take minutes."""
        seconds = time.perf_counter() - self._began
        if self._announced or self._iterations < 3 or seconds < _FIRST_SECONDS:
            return None
        self._announced = True
        rest = iterations * seconds / self._iterations
        return f"about {duration(rest)} for {iterations:,} more iterations" if rest > 60 else None

    def summary(self) -> str:
        """Return a sentence about all iterations."""
        seconds = time.perf_counter() - self._began
        speed = self._iterations * self.images / seconds
        peak = peak_memory(self.device)
        memory = f", at most {peak / 1e9:.1f} GB in use" if peak else ""
        return (
            f"trained {self._iterations} iterations in {duration(seconds)}, "
            f"{speed:.1f} images/s{memory}"
        )


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far in bytes: of the GPU, or of this process without a GPU.

    On Windows without a GPU, return 0.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def duration(seconds: float) -> str:
    """Return a duration in words, e.g. "4 min 10 s", "3 h 20 min" or "51 days"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{round(hours / 24):,} days"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
