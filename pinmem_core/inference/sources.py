"""Inputs of a prediction: images, folders, glob patterns, videos and standard input."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path, PurePath
from typing import BinaryIO

from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.paths import expanded, is_hidden, iter_files

STANDARD = Path("-")
"""Standard input as an input, standard output as an output."""
_IMAGES = "avif bmp gif jp2 jpeg jpg pgm png ppm tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _IMAGES.split())
"""Suffixes of images in a folder. A file named explicitly may have any suffix."""
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
"""Suffixes of videos."""


@dataclass(frozen=True)
class Source:
    """One input image or video.

    Attributes:
        path: Path of the file; "-" for standard input.
        name: Path relative to the folder or pattern that contains it; outputs use it as well.
        content: Bytes read from standard input, else None.
    """

    path: Path
    name: PurePath
    content: bytes | None = None

    @property
    def is_video(self) -> bool:
        """Whether the file's suffix is that of a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


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
    known suffix does not matter.

    Args:
        inputs: Files, folders, glob patterns, and "-" for an image from `stdin`.
        out: Output folder.
        stdin: Standard input.
        on_event: Callback for notices about files in folders that are left out.

    Raises:
        ConfigError: `out` is one of the folders, or an input is empty.
        DataError: A folder or a pattern leads to nothing, or an input is no regular file.
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
    if not text:  # a variable of a shell that is not set, and no name of the current folder
        raise ConfigError("an input has no name.", "Name a file, a folder, or '.' for this folder.")
    path = expanded(text)
    try:
        if path.is_dir():
            return _in_folder(path, path, out, on_event)
        if path.is_file() or not (path.exists() or has_magic(text)):
            return [Source(path, PurePath(path.name))]
        if not path.exists():
            return _matching(path, out, on_event)
    except OSError as error:
        raise DataError(f"{text} cannot be read: {error.strerror}.") from error
    raise DataError(
        f"{text} is no regular file.",
        "Name a file or folder, or give one image on standard input: 'pinmem predict -'.",
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
