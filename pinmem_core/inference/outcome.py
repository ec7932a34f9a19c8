"""What became of the images and videos that were to be predicted."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Predicted:
    """Something that was written.

    Attributes:
        input: The image or video.
        output: The file, or the folder of a video's frames.
        format: Name of the form.
        width: Of the upright input, in pixels.
        height: Likewise.
        frames: How many were predicted; 1 for an image.
    """

    input: Path
    output: Path
    format: str
    width: int
    height: int
    frames: int


@dataclass(frozen=True)
class Failed:
    """An image or video that could not be predicted, and why."""

    input: Path
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of all inputs.

    Attributes:
        outputs: What was written, in the order of the inputs.
        failed: Likewise.
        images: Images and frames that were predicted.
        seconds: From the first read to the last written.
    """

    outputs: tuple[Predicted, ...]
    failed: tuple[Failed, ...]
    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """How fast it went."""
        return self.images / self.seconds if self.seconds > 0 else 0.0
