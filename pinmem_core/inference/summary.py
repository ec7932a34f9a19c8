"""Results of predicting images and videos into files."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Predicted:
    """One written output.

    Attributes:
        input: Path of the image or video.
        output: Path of the written file, or of the folder with a video's frames.
        format: Name of the output format.
        width: Width of the upright input in pixels.
        height: Height of the upright input in pixels.
        frames: Number of predicted frames; 1 for an image.
    """

    input: Path
    output: Path
    format: str
    width: int
    height: int
    frames: int


@dataclass(frozen=True)
class Failed:
    """An image or video that could not be predicted, with the reason."""

    input: Path
    reason: str


@dataclass(frozen=True)
class PredictionSummary:
    """Summary of a prediction run.

    Attributes:
        outputs: Written outputs, in the order of the inputs.
        failed: Failed inputs, in the order of the inputs.
        images: Number of predicted images and video frames.
        seconds: Wall-clock time from the first read to the last write, in seconds.
    """

    outputs: tuple[Predicted, ...]
    failed: tuple[Failed, ...]
    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput in images per second."""
        return self.images / self.seconds if self.seconds > 0 else 0.0
