"""A logger in one file: a line of text for each event."""

from pinmem_core.events import Images, Metrics, RunStarted
from pinmem_core.training.loggers.base import Logger


class Lines(Logger):
    def __init__(self, run, after=0):
        self.file = (run / "events.txt").open("a")

    def __call__(self, event):
        match event:
            case RunStarted():
                self.file.write(f"start {event.config['method']}\n")
            case Metrics():
                self.file.write(f"metrics {event.iteration} {len(event.values)}\n")
            case Images():
                self.file.write(f"images {event.iteration} {' '.join(event.images)}\n")

    def close(self):
        self.file.close()


LOGGERS = {"lines": Lines}
