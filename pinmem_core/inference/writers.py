"""Output formats of predictions, and the paths that they are written to."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.errors import ConfigError, unknown_name
from pinmem_core.files import check_folder
from pinmem_core.inference.sources import (
    IMAGE_SUFFIXES,
    STANDARD,
    VIDEO_SUFFIXES,
    Source,
    source_of,
)
from pinmem_core.label_space import LabelSpace
from pinmem_core.paths import expanded
from pinmem_core.visualize import colorize, legend, overlay

if TYPE_CHECKING:
    from pinmem_core.inference.predictor import Prediction

BAND_PIXELS = 2**20
"""Pixels rendered at once. Large images are rendered in bands of rows, because rendering takes many
bytes per pixel."""
_COMPRESSION = 1
"""PNG compression level. Compared with Pillow's default, an overlay is a sixth larger and takes a
quarter of the time."""
_KINDS = {
    ".png": "as PNG",
    ".npz": "as NPZ",
    ".mp4": "as MP4",
    "": "as a folder with a file for each frame",
}
"""Description of an output, by suffix."""


@dataclass(frozen=True)
class OutputFormat:
    """An output format of predictions.

    Attributes:
        field: Field of `Prediction` that the format needs.
        render: Function from image rows (h, W, 3), rows of the field (h, W), and the label space to
            PNG rows (h, W') or (h, W', 3); None for NPZ, which stores the numbers.
        visual: Whether the format is only for viewing. Such frames can be written as a video, whose
            compression is lossy.
        colored: Whether the picture shows the colours of the classes; a legend explains them.
        palette: Whether the PNG has a palette: its values are trainIds, shown in colours.
    """

    field: Literal["train_ids", "confidence", "entropy", "probabilities"]
    render: Callable[[NDArray[np.uint8], NDArray[Any], LabelSpace], NDArray[np.uint8]] | None
    visual: bool = False
    colored: bool = False
    palette: bool = False

    @property
    def suffix(self) -> str:
        """File name suffix of one image in this format."""
        return ".npz" if self.render is None else ".png"


def _gray(
    image: NDArray[np.uint8], share: NDArray[np.float32], space: LabelSpace
) -> NDArray[np.uint8]:
    """Convert values from 0..1 to uint8 gray values, 0..255."""
    return (255 * share).round().clip(0, 255).astype(np.uint8)


def _color(
    image: NDArray[np.uint8], train_ids: NDArray[np.uint8], space: LabelSpace
) -> NDArray[np.uint8]:
    return colorize(train_ids, space)


def _side_by_side(
    image: NDArray[np.uint8], train_ids: NDArray[np.uint8], space: LabelSpace
) -> NDArray[np.uint8]:
    return np.concatenate([image, colorize(train_ids, space)], axis=1)


def _train_ids(
    image: NDArray[np.uint8], train_ids: NDArray[np.uint8], space: LabelSpace
) -> NDArray[np.uint8]:
    return train_ids


def _label_ids(
    image: NDArray[np.uint8], train_ids: NDArray[np.uint8], space: LabelSpace
) -> NDArray[np.uint8]:
    assert space.label_id_table is not None
    return space.label_id_table[train_ids]


FORMATS: dict[str, OutputFormat] = {
    "color": OutputFormat("train_ids", _color, visual=True, colored=True),
    "palette": OutputFormat("train_ids", _train_ids, palette=True),
    "trainid": OutputFormat("train_ids", _train_ids),
    "labelid": OutputFormat("train_ids", _label_ids),
    "overlay": OutputFormat("train_ids", overlay, visual=True, colored=True),
    "side-by-side": OutputFormat("train_ids", _side_by_side, visual=True, colored=True),
    "confidence": OutputFormat("confidence", _gray, visual=True),
    "entropy": OutputFormat("entropy", _gray, visual=True),
    "probabilities": OutputFormat("probabilities", None),
}


def check_formats(names: Iterable[str]) -> list[str]:
    """Return the names of formats without duplicates.

    Raises:
        ConfigError: A format does not exist; the message suggests the closest one.
    """
    formats = list(dict.fromkeys(names))
    for name in formats:
        if name == "beside":
            message = "the format 'beside' is called 'side-by-side' now."
            raise ConfigError(message, "Use '--format side-by-side'.")
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
    return formats


def require_ids(formats: Iterable[str], space: LabelSpace) -> None:
    """Raise ConfigError if a format needs ids that the classes of a label space lack."""
    if "labelid" in formats and not space.label_ids:
        raise ConfigError(
            f"the format 'labelid' needs the ids of a benchmark's own label files, and the classes "
            f"'{space.name}' have none.",
            "Use '--format trainid'.",
        )


def analyze_options(formats: Iterable[str]) -> dict[str, bool]:
    """Return the arguments of `Predictor.analyze` that the formats need."""
    needed = {FORMATS[name].field for name in formats}
    return {field: field in needed for field in ("confidence", "entropy", "probabilities")}


def render(format: str, image: NDArray[np.uint8], prediction: "Prediction") -> NDArray[np.uint8]:
    """Render a prediction; return pixels (H, W') or (H, W', 3).

    Args:
        format: Name of a format that is not NPZ.
        image: RGB image, (H, W, 3).
        prediction: "Prediction" of the image.
    """
    return np.concatenate(list(_bands(format, image, prediction)))


def _bands(
    format: str, image: NDArray[np.uint8], prediction: "Prediction"
) -> Iterator[NDArray[np.uint8]]:
    """Yield the result of `render` in bands of rows, from top to bottom."""
    paint = FORMATS[format].render
    assert paint is not None
    values = getattr(prediction, FORMATS[format].field)
    height = max(1, BAND_PIXELS // image.shape[1])
    for top in range(0, len(image), height):
        band = slice(top, top + height)
        yield paint(image[band], values[band], prediction.space)


def with_legend(
    pixels: NDArray[np.uint8], train_ids: Iterable[int], space: LabelSpace
) -> NDArray[np.uint8]:
    """Return a coloured picture (H, W, 3) with a legend of the classes `train_ids` below it."""
    return np.concatenate([pixels, legend({*train_ids}, pixels.shape[1], space)])


def class_counts(train_ids: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of pixels of each trainId, (256,)."""
    return np.array(Image.fromarray(train_ids).histogram())  # takes no memory, unlike np.bincount


def class_shares(counts: NDArray[np.int64], space: LabelSpace) -> dict[str, float]:
    """Return the share of pixels in 0..1 of each class that occurs, by name.

    Args:
        counts: Number of pixels of each trainId, (256,).
        space: Label space of the trainIds.
    """
    total = max(1, int(counts.sum()))
    named = zip(space.names, counts.tolist(), strict=False)
    return {name: round(count / total, 6) for name, count in named if count}


def write_prediction(
    output: "Output", image: NDArray[np.uint8], prediction: "Prediction", file: BinaryIO
) -> None:
    """Write a PNG, or an NPZ of `probabilities` (K, H, W) and `classes` (K,), to `file`."""
    format = output.format
    if FORMATS[format].render is None:
        assert prediction.probabilities is not None
        classes = np.array(prediction.space.names)
        np.savez(file, probabilities=prediction.probabilities, classes=classes)
        return
    bands = map(Image.fromarray, _bands(format, image, prediction))
    first = next(bands)
    picture = Image.new(first.mode, (first.width, len(image)))  # no second copy of all pixels
    top = 0
    for band in chain([first], bands):
        picture.paste(band, (0, top))
        top += band.height
    if FORMATS[format].palette:
        picture.putpalette(prediction.space.color_table.tobytes())
    if output.legend:
        present = np.flatnonzero(class_counts(prediction.train_ids)).tolist()
        picture = Image.fromarray(with_legend(np.asarray(picture), present, prediction.space))
    picture.save(file, "PNG", compress_level=_COMPRESSION)


@dataclass(frozen=True)
class Output:
    """An output file, or an output folder for the frames of a video.

    Attributes:
        path: Path of the file or folder.
        format: Name of the format.
        is_folder: Whether each frame becomes a file in a folder.
        legend: Whether a legend of the classes is drawn below the picture.
    """

    path: Path
    format: str
    is_folder: bool = False
    legend: bool = False

    def exists(self) -> bool:
        """Return whether the file, or the folder with frames, is there."""
        return self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir()))


@dataclass(frozen=True)
class Predicted:
    """One written output.

    Attributes:
        input: Path or address of the image or video.
        output: Path of the written file, or of the folder with a video's frames.
        format: Name of the output format.
        width: Width of the upright input in pixels.
        height: Height of the upright input in pixels.
        frames: Number of predicted frames; 1 for an image.
        shares: Share of the pixels in 0..1 of each class that occurs, by name.
    """

    input: Path | str
    output: Path
    format: str
    width: int
    height: int
    frames: int
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Job:
    """A source and its outputs."""

    source: Source
    outputs: tuple[Output, ...]

    def predicted(
        self, width: int, height: int, shares: Mapping[str, float], frames: int = 1
    ) -> tuple[Predicted, ...]:
        """Return the records of the written outputs; `shares` are those of `class_shares`."""
        return tuple(
            Predicted(self.source.label, out.path, out.format, width, height, frames, shares)
            for out in self.outputs
        )


def plan(
    sources: Sequence[Source],
    out: Path,
    formats: Sequence[str],
    *,
    frames: bool = False,
    force: bool = False,
    skip_existing: bool = False,
    legend: bool = False,
) -> list[Job]:
    """Return one job with its output paths for each source.

    Args:
        sources: Inputs to predict.
        out: File for one source, or folder for any number of sources.
        formats: Names of the formats. With several, they are appended to file names.
        frames: Whether to write videos as folders of frames in every format.
        force: Whether existing files may be replaced.
        skip_existing: Whether existing outputs, and sources without another output, are left out.
        legend: Whether coloured pictures get a legend of the classes.

    Raises:
        ConfigError: `out` does not suit the sources or formats, two outputs have the same path, or
            an output would replace an input or, without `force`, an existing file.
    """
    several = len(formats) > 1
    jobs = [
        Job(
            source,
            tuple(_output(source, stem, name, several, frames, out, legend) for name in formats),
        )
        for source, stem in zip(sources, _stems(sources, out), strict=True)
    ]
    if _is_file(out):
        _check_suffix(out, jobs[0])
    _check_distinct(jobs)
    if skip_existing:
        missing = [Job(j.source, tuple(o for o in j.outputs if not o.exists())) for j in jobs]
        return [job for job in missing if job.outputs]
    _check_existing(jobs, force)
    return jobs


def default_output(inputs: Sequence[str], format: str, *, frames: bool = False) -> Path:
    """Return the output where none is named.

    `photos/` becomes `photos-masks`, `street.jpg` becomes `street-mask.png`, both next to the
    input. Several inputs, and patterns, become `masks` in the current folder.

    Args:
        inputs: Inputs as for `find_sources`.
        format: First format.
        frames: Whether to write videos as folders of frames.
    """
    path, source = expanded(inputs[0]), source_of(inputs[0])
    is_pattern = source.is_file and has_magic(inputs[0]) and not path.exists()
    if len(inputs) > 1 or is_pattern:
        return Path("masks")
    if path.is_dir():
        folder = path if path.name and path.name != ".." else path.resolve()
        return folder.with_name(f"{folder.name}-masks")
    suffix = _suffix(source, format, frames=frames)
    place = source.path if source.is_file else Path(source.name)
    return place.with_name(f"{place.stem}-mask{suffix}" if suffix else f"{place.stem}-masks")


def plan_stream(
    sources: Sequence[Source], formats: Sequence[str], *, legend: bool = False
) -> tuple[Source, Output]:
    """Return the single image and the single output for standard output.

    Raises:
        ConfigError: There are several sources or formats, or the source is a video.
    """
    if len(sources) != 1 or len(formats) != 1 or sources[0].is_video:
        message = "standard output takes one image in one format."
        raise ConfigError(message, "Name a folder with -o.")
    return sources[0], Output(STANDARD, formats[0], legend=legend)


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


def _suffix(source: Source, format: str, *, frames: bool) -> str:
    """Return the suffix of an output; none for a folder of frames."""
    if source.is_video:
        return ".mp4" if FORMATS[format].visual and not frames else ""
    return FORMATS[format].suffix


def _output(
    source: Source, stem: Path, format: str, several: bool, frames: bool, out: Path, legend: bool
) -> Output:
    suffix = _suffix(source, format, frames=frames)
    ending = f"_{format}" if several else ""
    written = out.suffix if suffix == out.suffix.lower() and _is_file(out) else suffix
    path = stem.with_name(f"{stem.name}{ending}{written}")
    return Output(path, format, not suffix, legend and FORMATS[format].colored)


def _check_suffix(out: Path, job: Job) -> None:
    written = [output.path.suffix.lower() for output in job.outputs]
    if out.suffix.lower() not in written:
        raise ConfigError(
            f"'{job.outputs[0].format}' of {job.source.path} cannot be written to {out}: "
            f"it is written {_KINDS[written[0]]}.",
            f"Use '-o NAME{written[0]}'.",
        )


def _check_distinct(jobs: Sequence[Job]) -> None:
    """Raise ConfigError if an output equals an input, or equals or lies in an output or a file."""
    inputs = {job.source.path.resolve() for job in jobs if job.source.is_file}
    taken: dict[Path, Path | str] = {}
    for source, output in ((job.source.label, output) for job in jobs for output in job.outputs):
        place = output.path.resolve()
        if place in inputs:
            message = f"the mask {output.path} would replace an input image."
            raise ConfigError(message, "Name another -o.")
        if place in taken:
            raise ConfigError(
                f"{taken[place]} and {source} would both be written to {output.path}.",
                "Predict them in two calls, into two folders, or name the folder that both lie in.",
            )
        taken[place] = source
        check_folder(output.path.parent)
    for place, source in taken.items():
        if inside := next((parent for parent in place.parents if parent in taken), None):
            raise ConfigError(
                f"outputs of {source} would lie in {inside}, where those of {taken[inside]} go.",
                "Predict them in two calls, into two folders.",
            )


def _check_existing(jobs: Sequence[Job], force: bool) -> None:
    paths = [output.path for job in jobs for output in job.outputs]
    for path in paths:
        if path.is_dir() and any(path.iterdir()):
            raise ConfigError(
                f"the folder {path} exists and is not empty.",
                "Remove it, leave it with --skip-existing, or name another -o.",
            )
    existing = [path for path in paths if path.is_file()]
    if existing and not force:
        what = f"{existing[0]} exists"
        if len(existing) > 1:
            what = f"{len(existing)} of {len(paths)} outputs exist, {existing[0]} for one"
        raise ConfigError(
            f"{what}.",
            "Replace them with --force, leave them with --skip-existing, or name another -o.",
        )
