"""A run's figures and pictures as TensorBoard shows them."""

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
    """A listener that writes metrics, and pictures, where `tensorboard --logdir` finds them.

    What has been passed on is on disk when the call returns, so that a run which is killed has lost
    nothing of what it told.

    Args:
        folder: To write in; made where it does not exist.
        after: The last iteration of an earlier part of the run that counts. Later ones that the
            folder holds are hidden, since the run is going to do them again.

    Raises:
        MachineError: The package is not installed, or the folder cannot be written to. Writing may
            raise it, too.
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
        """Write the values of `Metrics`; other events are no figures."""
        if not isinstance(event, Metrics):
            return
        with self._writing():
            for name, value in event.values.items():
                self._writer.add_scalar(name, value, event.iteration)
            self._writer.flush()

    def pictures(self, iteration: int, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Write pictures of an iteration.

        Args:
            iteration: Counted from 1.
            images: (H, W, 3) RGB, by name.
        """
        with self._writing():
            for name, image in images.items():
                self._writer.add_image(name, image, iteration, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
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
