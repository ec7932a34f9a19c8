"""Weights & Biases. Its own variables, such as `WANDB_MODE` and `WANDB_PROJECT`, are respected."""

import os
import secrets
from pathlib import Path

from pinmem_core.events import Event, Images, Metrics, RunStarted
from pinmem_core.training.loggers.base import Logger, remembered_id, require_package, writing


class WandB(Logger):
    """Write events to one W&B run, which a resumed run continues; `wandb-id` holds its id.

    Values carry their iteration as `iteration`. W&B keeps the entries that a resumed run repeats.
    """

    def __init__(self, run: Path, after: int = 0) -> None:
        self._wandb = require_package("wandb", "W&B", "wandb")
        self._target = "the W&B run"
        identity = remembered_id(run / "wandb-id", secrets.token_hex(4))
        with writing(self._target, self._wandb.Error):
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "pinmem"),
                name=run.name,
                id=identity,
                resume="allow",
                dir=run,
                settings=self._wandb.Settings(silent=True, console="off"),
            )
            self._run.define_metric("*", step_metric="iteration")

    def __call__(self, event: Event) -> None:
        """Write metrics, pictures and the configuration."""
        with writing(self._target, self._wandb.Error):
            match event:
                case RunStarted():
                    self._run.config.update(event.config, allow_val_change=True)
                case Metrics():
                    self._run.log({"iteration": event.iteration, **event.values})
                case Images():
                    images = {n: self._wandb.Image(image) for n, image in event.images.items()}
                    self._run.log({"iteration": event.iteration, **images})

    def close(self) -> None:
        """Finish the W&B run."""
        with writing(self._target, self._wandb.Error):
            self._run.finish()


LOGGERS = {"wandb": WandB}
