"""What to predict: images, folders of them, patterns, videos and standard input."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path, PurePath
from typing import BinaryIO

from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Listener, Notice, ignore

STANDARD = Path("-")
"""As an input, standard input; as an output, standard output."""
_IMAGES = "avif bmp gif jp2 jpeg jpg pgm png ppm tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _IMAGES.split())
"""By these a folder's images are known; a file that is named may have any other."""
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
"""By these videos are known."""


@dataclass(frozen=True)
class Source:
    """One image or video.

    Attributes:
        path: Where it lies; "-" for standard input.
        name: Its path below the folder or pattern that named it, as its outputs will have it.
        content: What was read from standard input, else None.
    """

    path: Path
    name: PurePath
    content: bytes | None = None

    @property
    def is_video(self) -> bool:
        """Tell, by the file's suffix, whether it is a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(
    inputs: Sequence[str],
    *,
    out: Path | None = None,
    stdin: BinaryIO | None = None,
    on_event: Listener = ignore,
) -> list[Source]:
    """Return what `inputs` name, in their order, each file once.

    A folder stands for the images and videos in it and in its sub-folders, by name; hidden ones and
    what lies in `out` are left out. A text that is no file and has a `*`, `?` or `[` is a pattern,
    in which `**` stands for any folders.

    Args:
        inputs: Files, folders, patterns, and "-" for an image from `stdin`.
        out: Where outputs will lie.
        stdin: Standard input.
        on_event: Hears of files in folders that are passed over.

    Raises:
        ConfigError: `out` is one of the folders.
        DataError: A folder or a pattern leads to nothing.
    """
    sources: dict[Path, Source] = {}
    for text in inputs:
        if text == str(STANDARD) and stdin is not None:
            if STANDARD not in sources:
                sources[STANDARD] = Source(STANDARD, PurePath("stdin"), stdin.read())
            continue
        for source in _expanded(text, out, on_event):
            sources.setdefault(source.path.resolve(), source)
    return list(sources.values())


def _expanded(text: str, out: Path | None, on_event: Listener) -> Iterable[Source]:
    path = Path(text).expanduser()
    if path.is_dir():
        return _in_folder(path, path, out, on_event)
    if path.exists() or not has_magic(text):
        return [Source(path, PurePath(path.name))]
    return _matching(path, out, on_event)


def _matching(pattern: Path, out: Path | None, on_event: Listener) -> Iterator[Source]:
    base = Path(*takewhile(lambda part: not has_magic(part), pattern.parts))
    found = [Path(text) for text in sorted(glob(str(pattern), recursive=True))]  # noqa: PTH207
    if not found:
        raise DataError(f"nothing matches {pattern}.", "Is a folder's name misspelt?")
    for path in found:
        if path.is_file():
            yield Source(path, path.relative_to(base))
        elif "**" not in pattern.parts:  # which finds the files in this folder, too
            yield from _in_folder(path, base, out, on_event)


def _in_folder(folder: Path, base: Path, out: Path | None, on_event: Listener) -> Iterator[Source]:
    if out is not None and out.resolve() == folder.resolve():
        raise ConfigError(
            f"the masks would lie among the images in {folder}.", "Name another folder with -o."
        )
    files = list(_files_in(folder, out))
    known = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
    if not known:
        raise DataError(
            f"{folder} holds no images.", "Images and videos are known by their suffix."
        )
    if left := len(files) - len(known):
        on_event(
            Notice(f"{folder}: left out {left} of {len(files)} files, no images by their names")
        )
    yield from (Source(path, path.relative_to(base)) for path in known)


def _files_in(folder: Path, out: Path | None) -> Iterator[Path]:
    """Yield the files below `folder`, sorted, but hidden ones and those in `out`."""
    outside = out.resolve() if out is not None else None
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name for name in folders if name[0] != "." and (here / name).resolve() != outside
        )
        yield from (here / name for name in sorted(files) if name[0] != ".")
