"""Where each prediction goes: names that never overwrite silently."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinmem_core.errors import ConfigError
from pinmem_core.inference.painters import Form
from pinmem_core.inference.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Source

_KINDS = {
    ".png": "as PNG",
    ".npz": "as NPZ",
    ".mp4": "as MP4",
    "": "as a folder with a file for each frame",
}
"""How something is written, by suffix."""


@dataclass(frozen=True)
class Output:
    """A file, or a folder of a video's frames, that will be written.

    Attributes:
        path: Its place.
        format: Name of the form.
        form: What is written.
        is_folder: Whether each frame becomes a file.
    """

    path: Path
    format: str
    form: Form
    is_folder: bool = False


@dataclass(frozen=True)
class Job:
    """A source and all that is made of it."""

    source: Source
    outputs: tuple[Output, ...]


def plan(
    sources: Sequence[Source],
    out: Path,
    forms: Mapping[str, Form],
    *,
    frames: bool = False,
    force: bool = False,
) -> list[Job]:
    """Return what will be written where.

    Args:
        sources: What is predicted.
        out: A file for one source, or a folder for any number.
        forms: By name; with several, each output's name ends in that of its form.
        frames: Write videos as folders of frames in all forms.
        force: Files may be replaced.

    Raises:
        ConfigError: `out` does not suit the sources or forms, two outputs would be one, or one
            would replace an input or, without `force`, any other file.
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


def plan_stream(sources: Sequence[Source], forms: Mapping[str, Form]) -> tuple[Source, Form]:
    """Return the one image and the one form that a stream takes.

    Raises:
        ConfigError: There are several, or the source is a video.
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
    """Return the path of each source's outputs without form and suffix."""
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
    source: Source, stem: Path, name: str, forms: Mapping[str, Form], frames: bool, out: Path
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
    """Raise where an output is an input, another output, or inside of one."""
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
