"""Outputs of predictions: their paths, checked before the first image is predicted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

from pinmem_core.errors import ConfigError
from pinmem_core.files import check_folder
from pinmem_core.inference.sources import (
    IMAGE_SUFFIXES,
    STANDARD,
    VIDEO_SUFFIXES,
    Source,
    source_of,
)
from pinmem_core.inference.writers import FORMATS
from pinmem_core.paths import expanded

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
