"""TensorBoard: `tensorboard --logdir RUN/tensorboard`."""

from pathlib import Path

from pinmem_core.documents import json_text
from pinmem_core.events import Event, Images, Metrics, RunStarted
from pinmem_core.training.loggers.base import Logger, require_package, writing


class TensorBoard(Logger):
    """Write events to the folder `tensorboard` of the run.

    Each call flushes to disk before it returns, so a killed run loses nothing. TensorBoard hides
    entries after the iteration `after`.
    """

    def __init__(self, run: Path, after: int = 0) -> None:
        module = require_package("torch.utils.tensorboard", "TensorBoard", "tensorboard")
        self._folder = run / "tensorboard"
        with writing(self._folder):
            self._writer = module.SummaryWriter(self._folder, purge_step=after + 1)
            self._writer.flush()

    def __call__(self, event: Event) -> None:
        """Write metrics as scalars, pictures as images, and the configuration as a text."""
        with writing(self._folder):
            match event:
                case RunStarted():
                    text = json_text(event.config, indent=2).replace("\n", "\n    ")
                    self._writer.add_text("config", f"    {text}")
                case Metrics():
                    for name, value in event.values.items():
                        self._writer.add_scalar(name, value, event.iteration)
                case Images():
                    for name, image in event.images.items():
                        self._writer.add_image(name, image, event.iteration, dataformats="HWC")
                case _:
                    return
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        with writing(self._folder):
            self._writer.close()


LOGGERS = {"tensorboard": TensorBoard}
