"""Predicting image files into mask files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.images import read_image, write_png
from pinmem_core.inference.painters import Painter
from pinmem_core.inference.predictor import Predictor


@dataclass(frozen=True)
class Predicted:
    """A mask that was written; width and height in pixels, those of the upright image."""

    input: Path
    output: Path
    width: int
    height: int


@dataclass(frozen=True)
class Failed:
    """An image that could not be predicted, and why."""

    input: Path
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of all images."""

    outputs: tuple[Predicted, ...]
    failed: tuple[Failed, ...]


def output_paths(images: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Return each image with the path of its mask.

    One image goes to `out` itself where that ends in ".png"; else masks go into the folder `out`
    under the image's name.

    Raises:
        ConfigError: Two images would share a mask, a mask would replace an input image, or `out`
            is no PNG.
    """
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"):
        raise ConfigError(
            f"a mask cannot be written to {out}: masks are PNG.", "Use '-o NAME.png'."
        )
    if len(images) == 1 and out.suffix.lower() == ".png" and not out.is_dir():
        masks = [out]
    else:
        masks = [out / f"{image.stem}.png" for image in images]
    taken: dict[Path, Path] = {image.resolve(): image for image in images}
    for image, mask in zip(images, masks, strict=True):
        other = taken.setdefault(mask.resolve(), image)
        if mask.resolve() == other.resolve():
            raise ConfigError(f"the mask {mask} would replace an input image.", "Name another -o.")
        if other is not image:
            raise ConfigError(
                f"{other} and {image} would both be written to {mask}.",
                "Predict them in two calls, into two folders.",
            )
    return list(zip(images, masks, strict=True))


def predict_files(
    predictor: Predictor,
    jobs: Sequence[tuple[Path, Path]],
    painter: Painter,
    *,
    on_event: Listener = ignore,
) -> Outcome:
    """Predict every image and write its mask; an unreadable one does not stop the others.

    Args:
        predictor: The model and its protocol.
        jobs: Images and the paths of their masks.
        painter: The form of the masks.
        on_event: Hears of the progress.
    """
    outputs: list[Predicted] = []
    failed: list[Failed] = []
    for done, (image, mask) in enumerate(jobs, start=1):
        try:
            pixels = read_image(image)
            write_png(mask, painter(pixels, predictor.predict(pixels)))
            outputs.append(Predicted(image, mask, pixels.shape[1], pixels.shape[0]))
        except DataError as error:
            failed.append(Failed(image, error.message))
        on_event(Progress("predicting", done, len(jobs)))
    return Outcome(tuple(outputs), tuple(failed))
