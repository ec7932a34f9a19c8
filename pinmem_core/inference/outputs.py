"""Plan the output paths of predictions; never overwrite a file silently."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinmem_core.errors import ConfigError
from pinmem_core.inference.formats import OutputFormat
from pinmem_core.inference.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Source

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
