"""Metrics and pictures of a run for TensorBoard."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import MachineError
from pinmem_core.events import Event, Metrics


class TensorBoard:
    """A listener that writes metrics and pictures for `tensorboard --logdir`.

    Each call flushes to disk before it returns, so a killed run loses nothing.

    Args:
        folder: Folder to write to; it is created if necessary.
        after: Last valid iteration of an earlier part of the run. TensorBoard hides later entries
            of the folder, because the run repeats these iterations.

    Raises:
        MachineError: The package is not installed, or the folder cannot be written to. Later
            writes can also raise it.
    """

    def __init__(self, folder: Path, after: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MachineError(
                f"TensorBoard's Python package cannot be imported ({error}).",
                "pip install 'pinmem[tensorboard]'",
            ) from error
        self._folder = folder
        with self._writing():
            self._writer = SummaryWriter(folder, purge_step=after + 1)
            self._writer.flush()

    def __call__(self, event: Event) -> None:
        """Write the values of `Metrics`; ignore other events."""
        if not isinstance(event, Metrics):
            return
        with self._writing():
            for name, value in event.values.items():
                self._writer.add_scalar(name, value, event.iteration)
            self._writer.flush()

    def pictures(self, iteration: int, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Write pictures of an iteration.

        Args:
            iteration: TrainStep, counted from 1.
            images: RGB pictures by name, (H, W, 3).
        """
        with self._writing():
            for name, image in images.items():
                self._writer.add_image(name, image, iteration, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        with self._writing():
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MachineError(f"cannot write {self._folder}: {error}.") from error
