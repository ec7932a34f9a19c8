"""Output formats of predictions, and the paths that they are written to."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.errors import ConfigError, unknown_name
from pinmem_core.inference.predictor import Prediction
from pinmem_core.inference.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Source
from pinmem_core.label_space import CLASS_NAMES, LABEL_ID_TABLE
from pinmem_core.visualize import colorize, overlay

Painter = Callable[[NDArray[np.uint8], NDArray[Any]], NDArray[np.uint8]]
"""Function from image rows (h, W, 3) and a part of their prediction (h, W) to the output rows,
(h, W') or (h, W', 3)."""

BAND_PIXELS = 2**20
"""Pixels rendered at once. Large images are rendered in bands of rows, because rendering takes many
bytes per pixel."""
_COMPRESSION = 1
"""PNG compression level. Compared with Pillow's default, an overlay is a sixth larger and takes a
quarter of the time."""


@dataclass(frozen=True)
class OutputFormat:
    """An output format of predictions.

    Attributes:
        shows: Field of `Prediction` that the format needs.
        paint: Function that renders the pixels of a PNG; None for NPZ, which stores the numbers.
        is_for_eyes: Whether the format is only for viewing. Such frames can be written as a video,
            whose compression is lossy.
    """

    shows: Literal["train_ids", "confidence", "entropy", "probabilities"]
    paint: Painter | None
    is_for_eyes: bool = False

    @property
    def suffix(self) -> str:
        """File name suffix of one image in this format."""
        return ".npz" if self.paint is None else ".png"


def _grey(image: NDArray[np.uint8], share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert values from 0..1 to uint8 grey values, 0..255."""
    return (255 * share).round().clip(0, 255).astype(np.uint8)


def _beside(image: NDArray[np.uint8], train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([image, colorize(train_ids)], axis=1)


FORMS: dict[str, OutputFormat] = {
    "color": OutputFormat(
        "train_ids", lambda image, train_ids: colorize(train_ids), is_for_eyes=True
    ),
    "trainid": OutputFormat("train_ids", lambda image, train_ids: train_ids),
    "labelid": OutputFormat("train_ids", lambda image, train_ids: LABEL_ID_TABLE[train_ids]),
    "overlay": OutputFormat("train_ids", overlay, is_for_eyes=True),
    "beside": OutputFormat("train_ids", _beside, is_for_eyes=True),
    "confidence": OutputFormat("confidence", _grey, is_for_eyes=True),
    "entropy": OutputFormat("entropy", _grey, is_for_eyes=True),
    "probabilities": OutputFormat("probabilities", None),
}


def get_formats(names: Iterable[str]) -> dict[str, OutputFormat]:
    """Return the formats by name, without duplicates.

    Raises:
        ConfigError: A format does not exist; the message suggests the closest one.
    """
    for name in names:
        if name not in FORMS:
            raise unknown_name("format", name, FORMS)
    return {name: FORMS[name] for name in names}


def needs(forms: Iterable[OutputFormat]) -> Mapping[str, bool]:
    """Return the arguments of `Predictor.analyze` that `forms` need."""
    shown = {form.shows for form in forms}
    return {part: part in shown for part in ("confidence", "entropy", "probabilities")}


def painted(
    form: OutputFormat, image: NDArray[np.uint8], prediction: Prediction
) -> NDArray[np.uint8]:
    """Render a prediction; return pixels (H, W') or (H, W', 3).

    Args:
        form: Format with a `paint` function.
        image: RGB image, (H, W, 3).
        prediction: Prediction of the image.
    """
    return np.concatenate(list(_painted_bands(form, image, prediction)))


def _painted_bands(
    form: OutputFormat, image: NDArray[np.uint8], prediction: Prediction
) -> Iterator[NDArray[np.uint8]]:
    """Yield the result of `painted` in bands of rows, from top to bottom."""
    assert form.paint is not None
    shown = getattr(prediction, form.shows)
    height = max(1, BAND_PIXELS // image.shape[1])
    for top in range(0, len(image), height):
        band = slice(top, top + height)
        yield form.paint(image[band], shown[band])


def _picture(form: OutputFormat, image: NDArray[np.uint8], prediction: Prediction) -> Image.Image:
    """Return the result of `painted` as an image, without a second copy of its pixels."""
    bands = map(Image.fromarray, _painted_bands(form, image, prediction))
    first = next(bands)
    picture = Image.new(first.mode, (first.width, len(image)))
    top = 0
    for band in chain([first], bands):
        picture.paste(band, (0, top))
        top += band.height
    return picture


def write_format(
    form: OutputFormat, image: NDArray[np.uint8], prediction: Prediction, file: BinaryIO
) -> None:
    """Write a PNG, or an NPZ of `probabilities` (K, H, W) and `classes` (K,), to `file`."""
    if form.paint is None:
        assert prediction.probabilities is not None
        classes = np.array(CLASS_NAMES[: len(prediction.probabilities)])
        np.savez(file, probabilities=prediction.probabilities, classes=classes)
    else:
        picture = _picture(form, image, prediction)
        picture.save(file, "PNG", compress_level=_COMPRESSION)


_KINDS = {
    ".png": "as PNG",
    ".npz": "as NPZ",
    ".mp4": "as MP4",
    "": "as a folder with a file for each frame",
}
"""Description of an output, by suffix."""


@dataclass(frozen=True)
class Output:
    """An output file, or an output folder for the frames of a video.

    Attributes:
        path: Path of the file or folder.
        format: Name of the format.
        form: Output format.
        is_folder: Whether each frame becomes a file in a folder.
    """

    path: Path
    format: str
    form: OutputFormat
    is_folder: bool = False


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
class Job:
    """A source and its outputs."""

    source: Source
    outputs: tuple[Output, ...]


def plan(
    sources: Sequence[Source],
    out: Path,
    forms: Mapping[str, OutputFormat],
    *,
    frames: bool = False,
    force: bool = False,
) -> list[Job]:
    """Return one job with its output paths for each source.

    Args:
        sources: Inputs to predict.
        out: File for one source, or folder for any number of sources.
        forms: Output formats by name. With several, the format's name is appended to file names.
        frames: Whether to write videos as folders of frames in every format.
        force: Whether existing files may be replaced.

    Raises:
        ConfigError: `out` does not suit the sources or formats, two outputs have the same path, or
            an output would replace an input or, without `force`, an existing file.
    """
    jobs = [
        Job(source, tuple(_output(source, stem, name, forms, frames, out) for name in forms))
        for source, stem in zip(sources, _stems(sources, out), strict=True)
    ]
    if _is_file(out):
        _check_suffix(out, jobs[0])
    _check_distinct(jobs)
    _check_existing(jobs, force)
    return jobs


def plan_stream(
    sources: Sequence[Source], forms: Mapping[str, OutputFormat]
) -> tuple[Source, OutputFormat]:
    """Return the single image and the single format for standard output.

    Raises:
        ConfigError: There are several sources or formats, or the source is a video.
    """
    if len(sources) != 1 or len(forms) != 1 or sources[0].is_video:
        raise ConfigError(
            "standard output takes one image in one format.", "Name a folder with -o."
        )
    return sources[0], next(iter(forms.values()))


def _is_file(out: Path) -> bool:
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES | _KINDS.keys()
    return bool(out.suffix) and out.suffix.lower() in known and not out.is_dir()


def _stems(sources: Sequence[Source], out: Path) -> list[Path]:
    """Return the output path of each source without format name and suffix."""
    if not _is_file(out):
        short = [source.name.with_suffix("") for source in sources]
        times = Counter(short)  # a.jpg and a.png become a.jpg.png and a.png.png
        return [
            out / (source.name if times[name] > 1 else name)
            for source, name in zip(sources, short, strict=True)
        ]
    if len(sources) > 1:
        raise ConfigError(
            f"{out} is one file, but there are {len(sources)} inputs.", "Name a folder with -o."
        )
    return [out.with_suffix("")]


def _output(
    source: Source,
    stem: Path,
    name: str,
    forms: Mapping[str, OutputFormat],
    frames: bool,
    out: Path,
) -> Output:
    form = forms[name]
    suffix = form.suffix
    if source.is_video:
        suffix = ".mp4" if form.is_for_eyes and not frames else ""
    ending = f"_{name}" if len(forms) > 1 else ""
    written = out.suffix if suffix == out.suffix.lower() and _is_file(out) else suffix
    return Output(stem.with_name(f"{stem.name}{ending}{written}"), name, form, not suffix)


def _check_suffix(out: Path, job: Job) -> None:
    written = [output.path.suffix.lower() for output in job.outputs]
    if out.suffix.lower() not in written:
        raise ConfigError(
            f"'{job.outputs[0].format}' of {job.source.path} cannot be written to {out}: "
            f"it is written {_KINDS[written[0]]}.",
            f"Use '-o NAME{written[0]}'.",
        )


def _check_distinct(jobs: Sequence[Job]) -> None:
    """Raise ConfigError if an output equals an input or another output, or lies inside of one."""
    inputs = {job.source.path.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        for output in job.outputs:
            place = output.path.resolve()
            if place in inputs:
                raise ConfigError(
                    f"the mask {output.path} would replace an input image.", "Name another -o."
                )
            if place in taken:
                raise ConfigError(
                    f"{taken[place]} and {job.source.path} would both be written to {output.path}.",
                    "Predict them in two calls, into two folders, or name the folder that both "
                    "lie in.",
                )
            taken[place] = job.source.path
    for place, source in taken.items():
        if inside := next((parent for parent in place.parents if parent in taken), None):
            raise ConfigError(
                f"outputs of {source} would lie in {inside}, where those of {taken[inside]} go.",
                "Predict them in two calls, into two folders.",
            )


def _check_existing(jobs: Sequence[Job], force: bool) -> None:
    outputs = [output for job in jobs for output in job.outputs]
    for output in outputs:
        if output.path.is_dir() and any(output.path.iterdir()):
            raise ConfigError(
                f"the folder {output.path} exists and is not empty.",
                "Remove it, or name another -o.",
            )
    existing = [output.path for output in outputs if output.path.is_file()]
    if existing and not force:
        what = f"{existing[0]} exists"
        if len(existing) > 1:
            what = f"{len(existing)} of {len(outputs)} outputs exist, {existing[0]} for one"
        raise ConfigError(f"{what}.", "Replace them with --force, or name another -o.")
