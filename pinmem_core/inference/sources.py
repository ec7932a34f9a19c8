"""Inputs of a prediction: images, videos, folders, glob patterns, web addresses, cameras, stdin."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from pinmem_core.addresses import redact_url
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.paths import as_portable_name, expanded, is_hidden, iter_files

STANDARD = Path("-")
"""Standard input as an input, standard output as an output."""
_IMAGES = "avif bmp gif jp2 jpeg jpg pgm png ppm tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _IMAGES.split())
"""Suffixes of images in a folder. A file named explicitly may have any suffix."""
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
"""Suffixes of videos."""
_ADDRESS = re.compile("https?://", re.IGNORECASE)
_CAMERA = re.compile(r"camera:(\d{1,3})", re.ASCII)


@dataclass(frozen=True)
class Source:
    """One input image or video.

    Attributes:
        path: Path of the file; "-" for standard input; the file name of a web address.
        name: Path relative to the folder or pattern that contains it; outputs use it as well.
        content: Bytes read from standard input or from a web address, else None.
        address: Web address without secrets, else None.
        camera: Index of a camera, else None.
    """

    path: Path
    name: PurePath
    content: bytes | None = None
    address: str | None = None
    camera: int | None = None

    @property
    def is_video(self) -> bool:
        """Whether the source is a camera, or the file's suffix is that of a video."""
        return self.camera is not None or self.path.suffix.lower() in VIDEO_SUFFIXES

    @property
    def is_file(self) -> bool:
        """Whether the source is a file on this machine."""
        return self.path != STANDARD and self.address is None and self.camera is None

    @property
    def label(self) -> Path | str:
        """Path or web address, for messages."""
        return self.address or self.path


def find_sources(
    inputs: Sequence[str],
    *,
    out: Path | None = None,
    stdin: BinaryIO | None = None,
    on_event: Listener = ignore,
) -> list[Source]:
    """Return the images and videos that `inputs` name, in order, without duplicates.

    A folder stands for the images and videos in it and in its sub-folders, linked ones included, by
    name; hidden files and what lies in `out` are left out. A text that is no file and has a `*`,
    `?` or `[` is a pattern, in which `**` stands for any folders, by the same rules; the case of a
    known suffix does not matter. The image at a web address is fetched at once.

    Args:
        inputs: Files, folders, glob patterns, addresses that begin with http:// or https://,
            "camera:0" and so on, and "-" for an image from `stdin`.
        out: Output folder.
        stdin: Standard input.
        on_event: Callback for notices about files in folders that are left out.

    Raises:
        ConfigError: `out` is one of the folders, or an input is empty.
        DataError: An input does not exist or is no regular file, a folder or a pattern leads to
            nothing, or an address leads to no image.
        MachineError: The site of an address cannot be reached.
    """
    sources: dict[Path | str, Source] = {}
    for text in dict.fromkeys(inputs):
        source = source_of(text)
        if source.is_file or (source.path == STANDARD and stdin is None):
            for one in _expanded(text, out, on_event):
                sources.setdefault(one.path.resolve(), one)
        elif source.address:
            sources[source.address] = _fetched(source, text)
        else:
            content = stdin.read() if stdin and source.camera is None else None
            sources[source.path] = replace(source, content=content)
    return list(sources.values())


def source_of(text: str) -> Source:
    """Return the source that a file, an address, a camera or "-" names, without reading it."""
    path = expanded(text)
    if text == str(STANDARD):
        return Source(STANDARD, PurePath("stdin"))
    is_here = os.path.exists(path)  # noqa: PTH110  # Path.exists raises for a long name
    if not is_here and _ADDRESS.match(text):
        parts = urlsplit(text)
        name = PurePosixPath(unquote(parts.path)).name or parts.hostname or "image"
        path = Path(as_portable_name(name))
        return Source(path, path, address=redact_url(text))
    if not is_here and (camera := _CAMERA.fullmatch(text)):
        return Source(path, PurePath(f"camera-{camera[1]}"), camera=int(camera[1]))
    return Source(path, PurePath(path.name))


def _fetched(source: Source, address: str) -> Source:
    from pinmem_core.inference.remote import fetch_image

    if source.is_video:
        raise DataError(
            f"{source.label} is a video: only images are fetched.",
            "Download it, and name the file.",
        )
    return replace(source, content=fetch_image(address))


def images_in(folder: Path, out: Path | None = None) -> list[Source]:
    """Return the images and videos in a folder and its sub-folders; there may be none.

    Args:
        folder: The folder.
        out: Output folder; what lies in it is left out.

    Raises:
        DataError: A folder cannot be listed.
    """
    return [Source(p, p.relative_to(folder)) for p in _below(folder, out) if _known(p)]


def _expanded(text: str, out: Path | None, on_event: Listener) -> Iterable[Source]:
    if not text:  # a variable of a shell that is not set, and no name of the current folder
        raise ConfigError("an input has no name.", "Name a file, a folder, or '.' for this folder.")
    path = expanded(text)
    try:
        if path.is_dir():
            return _in_folder(path, path, out, on_event)
        if path.is_file():
            return [Source(path, PurePath(path.name))]
        if not path.exists():
            if has_magic(text):
                return _matching(path, out, on_event)
            raise DataError(f"{text} does not exist.", "Name a file, a folder or a quoted pattern.")
    except OSError as error:
        raise DataError(f"{text} cannot be read: {error.strerror}.") from error
    raise DataError(
        f"{text} is no regular file.",
        "Name a file or folder, or give one image on standard input: 'pinmem predict - < IMAGE'.",
    )


def _matching(pattern: Path, out: Path | None, on_event: Listener) -> Iterator[Source]:
    base, wanted = _fixed_part(pattern)
    wanted[-1] = _with_suffix_of_any_case(wanted[-1])
    matches = list(_hits(base, wanted, out))
    if not matches:
        raise DataError(f"nothing matches {pattern}.", "Is a folder's name misspelt?")
    for path in matches:
        if path.is_dir():
            yield from _in_folder(path, base, out, on_event)
        else:
            yield Source(path, path.relative_to(base))


def _hits(base: Path, wanted: Sequence[str], out: Path | None) -> Iterator[Path]:
    """Yield the files and folders below `base` that match the parts of a pattern."""
    if wanted == ["**"]:
        yield from [base] if base.is_dir() else []
    elif "**" in wanted:
        for path in _below(base, out):
            if _fits(path.relative_to(base).parts, wanted) and (wanted[-1] != "**" or _known(path)):
                yield path
    else:
        for text in sorted(glob("/".join(wanted), root_dir=base)):  # noqa: PTH207
            parts = zip(PurePath(text).parts, wanted, strict=True)
            if any(is_hidden(part) and want[0] in "*?[" for part, want in parts):
                continue
            if (base / text).is_file() or (base / text).is_dir():
                yield base / text


def _fixed_part(pattern: Path) -> tuple[Path, list[str]]:
    """Split a pattern into its leading folder without wildcards and the remaining parts."""
    parts = list(pattern.parts)
    base = Path()
    while len(parts) > 1 and (not has_magic(parts[0]) or (base / parts[0]).is_dir()):
        base /= parts.pop(0)
    return base, parts


def _with_suffix_of_any_case(pattern: str) -> str:
    """Return the pattern of a name, in which the case of a known suffix does not matter."""
    stem, suffix = PurePath(pattern).stem, PurePath(pattern).suffix
    if not _is_known(suffix):
        return pattern
    return f"{stem}." + "".join(
        f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else letter
        for letter in suffix[1:]
    )


def _fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Return whether a path's parts match a pattern's; `**` matches any number of folders."""
    if not wanted:
        return not parts
    if wanted == ["**"]:
        return bool(parts)
    if wanted[0] == "**":
        return _fits(parts, wanted[1:]) or (bool(parts) and _fits(parts[1:], wanted))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])


def _in_folder(folder: Path, base: Path, out: Path | None, on_event: Listener) -> Iterator[Source]:
    if out is not None and out.resolve() == folder.resolve():
        raise ConfigError(
            f"the masks would lie among the images in {folder}.", "Name another folder with -o."
        )
    files = _below(folder, out)
    known = [path for path in files if _known(path)]
    if not known:
        raise DataError(
            f"{folder} holds no images.", "Images and videos are recognized by their suffix."
        )
    if left := len(files) - len(known):
        on_event(Notice(f"{folder}: skipped {left} of {len(files)} files without an image suffix"))
    yield from (Source(path, path.relative_to(base)) for path in known)


def _known(path: Path) -> bool:
    return _is_known(path.suffix)


def _is_known(suffix: str) -> bool:
    return suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


def _below(folder: Path, out: Path | None) -> list[Path]:
    """Return the files below `folder`, sorted, without hidden files and files in `out`."""
    paths = sorted(iter_files(folder, without=out), key=lambda path: path.split("/"))
    return [folder / path for path in paths]
