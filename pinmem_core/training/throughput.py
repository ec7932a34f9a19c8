"""Speed and memory use of a run."""

import sys
import time

import torch

from pinmem_core.events import Speed


class Throughput:
    """Measure the images per second.

    Args:
        images: Images per iteration, over all processes.
        device: Device of the computation.
    """

    def __init__(self, images: int, device: torch.device) -> None:
        self.images = images
        self.device = device
        self._began = self._last = time.perf_counter()
        self._iterations = self._since = 0

    def count(self) -> None:
        """Count an iteration."""
        self._iterations += 1
        self._since += 1

    def tell(self) -> Speed:
        """Return the speed since the last call."""
        now = time.perf_counter()
        speed = self._since * self.images / (now - self._last)
        self._last, self._since = now, 0
        return Speed(speed, peak_memory(self.device))

    def summary(self) -> str:
        """Return a sentence about all iterations."""
        seconds = time.perf_counter() - self._began
        speed = self._iterations * self.images / seconds
        peak = peak_memory(self.device)
        memory = f", at most {peak / 1e9:.1f} GB in use" if peak else ""
        return (
            f"trained {self._iterations} iterations in {_duration(seconds)}, "
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


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
