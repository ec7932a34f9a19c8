"""The samples of a prepared dataset, stored as columns."""

import json
import operator
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pinmem_core.documents import parse_json
from pinmem_core.errors import DataError
from pinmem_core.images import read_image, read_train_ids

Item = TypeVar("Item")


def evenly_spaced(samples: Sequence[Item], count: int) -> list[Item]:
    """Return `count` evenly spread `samples`, the first and the last among them; at most all."""
    indices = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return [samples[index] for index in indices]


@dataclass(frozen=True)
class Sample:
    """One line of a manifest.

    Attributes:
        id: Unique in its dataset.
        image: Path of the picture, absolute or relative to the dataset's root.
        label: Path of the trainId PNG, absolute or relative to the dataset's root.
        split: "train", "val" or "test".
        domain: Domain inside the dataset.
        width: Width of image and label, in pixels.
        height: Height of image and label, in pixels.
    """

    id: str
    image: Path
    label: Path
    split: str
    domain: str
    width: int
    height: int

    @property
    def dataset(self) -> str:
        """The name of the dataset; of a sample whose paths are absolute."""
        folders = (path.parent.name for path in self.label.parents if path.name == "labels")
        return next(folders, self.label.parent.name)

    def to_json(self) -> str:
        """Return the sample as a line of a manifest."""
        return json.dumps({**vars(self), "image": str(self.image), "label": str(self.label)})

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the image (H, W, 3) and its trainIds (H, W).

        `prepare` and `verify` read files to their last byte; this only decodes them.

        Raises:
            DataError: A file cannot be read, the label holds other values than trainIds, or the
                two differ in size.
        """
        with self.mendable():
            image = read_image(self.image, checked=True)
            train_ids = read_train_ids(self.label, checked=True)
            if train_ids.shape != image.shape[:2]:
                raise DataError(
                    f"{self.label} is {train_ids.shape[1]}x{train_ids.shape[0]}, but its image "
                    f"{self.image} is {image.shape[1]}x{image.shape[0]}."
                )
            return image, train_ids

    @contextmanager
    def mendable(self) -> Iterator[None]:
        """Let an error of a file that was spoilt after `prepare` say which commands mend it."""
        try:
            yield
        except DataError as error:
            raise DataError(
                error.message,
                f"'pinmem data verify {self.dataset}' lists all such files. Restore them, or have "
                f"'pinmem data prepare {self.dataset}' leave them out.",
            ) from error

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> "Sample":
        """Return the sample of a manifest's line.

        Raises:
            TypeError: A field is missing, unknown, or of another type.
        """
        sample = cls(**fields | {key: Path(fields[key]) for key in ("image", "label")})
        texts = (sample.id, sample.split, sample.domain)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("an id, split or domain is not a text")
        if not all(type(side) is int and side > 0 for side in (sample.width, sample.height)):
            raise TypeError("a width or height is not a number of pixels")
        return sample

    def below(self, root: Path) -> "Sample":
        """Return the sample with absolute paths; relative ones begin at `root`."""
        image, label = (_absolute(root, path) for path in (self.image, self.label))
        return replace(self, image=image, label=label)


_TEXT = rb'"([ !#-\[\]-~]*)"'
_SIDE = rb"([1-9][0-9]{0,8})"
_AS_WRITTEN = re.compile(
    rb'\{"id": %b, "image": %b, "label": %b, "split": %b, "domain": %b, '
    rb'"width": %b, "height": %b\}\n' % (*[_TEXT] * 5, *[_SIDE] * 2)
)
"""A line as `Sample.to_json` writes it where no letter is escaped. Taking it apart needs a fifth of
the time of a JSON parser that checks as much."""
_LONGEST_LINE = 1 << 20
_ORDER = tuple(field.name for field in fields(Sample))
_SIDES = {"width", "height"}
_NAMES = {*_ORDER} - _SIDES


class _Names:
    """A column of text with few different values: a small number for each sample."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.codes = array("i")
        self._known: dict[bytes, int] = {}

    def append(self, name: bytes) -> None:
        code = self._known.get(name)
        if code is None:
            code = self._known[name] = len(self.names)
            self.names.append(_decoded(name))
        self.codes.append(code)


class _Columns:
    """All samples of a manifest: texts in one block of bytes, numbers in arrays."""

    def __init__(self, root: Path, lines: Iterable[bytes]) -> None:
        text, ends, sizes = bytearray(), array("q", [0]), array("i")
        splits, domains = _Names(), _Names()
        for number, line in enumerate(lines, start=1):
            match = _AS_WRITTEN.fullmatch(line)
            if not match and not line.strip():
                continue
            values = match.groups() if match else _parsed(line, number)
            identity, image, label, split, domain, width, height = values
            for part in (identity, image, label):
                text += part
                ends.append(len(text))
            splits.append(split)
            domains.append(domain)
            sizes.append(int(width))
            sizes.append(int(height))
        self.root = root
        self.text = bytes(text)
        self.ends = np.frombuffer(ends, np.int64)
        self.sizes = np.frombuffer(sizes, np.int32).reshape(-1, 2)
        self.splits = splits.names, np.frombuffer(splits.codes, np.int32)
        self.domains = domains.names, np.frombuffer(domains.codes, np.int32)

    def __len__(self) -> int:
        return len(self.sizes)

    def value(self, row: int, column: int) -> str:
        """Return the id (column 0), image (1) or label (2) of a sample."""
        first = 3 * row + column
        part = self.text[self.ends[first] : self.ends[first + 1]]
        return _decoded(part)

    def sample(self, row: int) -> Sample:
        width, height = self.sizes[row].tolist()
        return Sample(
            self.value(row, 0),
            _absolute(self.root, self.value(row, 1)),
            _absolute(self.root, self.value(row, 2)),
            self.splits[0][self.splits[1][row]],
            self.domains[0][self.domains[1][row]],
            width,
            height,
        )


class Samples(Sequence[Sample]):
    """Some samples of a prepared dataset, in order.

    A `Sample` with its paths is made when it is asked for. Selections share the columns of the
    whole dataset.

    Args:
        columns: The samples of the dataset.
        rows: Which of them; None for all.
    """

    def __init__(self, columns: _Columns, rows: NDArray[np.integer] | None = None) -> None:
        self._columns = columns
        self._rows = np.arange(len(columns), dtype=np.int32) if rows is None else rows

    @classmethod
    def read(cls, manifest: Path) -> "Samples":
        """Return the samples of a manifest, their paths absolute.

        Raises:
            OSError: The file cannot be read.
            DataError: A line is damaged.
        """
        if not manifest.is_file():
            raise DataError(f"there is no {manifest.name}.")
        with manifest.open("rb") as file:
            lines = iter(partial(file.readline, _LONGEST_LINE), b"")
            return cls(_Columns(manifest.parent, lines))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        """Return a sample, or those of a slice."""
        if isinstance(index, slice):
            return Samples(self._columns, self._rows[index])
        return self._columns.sample(int(self._rows[index]))

    def __eq__(self, other: object) -> bool:
        """Return whether `other` holds the same samples in the same order."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    @property
    def ids(self) -> Iterator[str]:
        """The ids of the samples, in order."""
        return (self._columns.value(int(row), 0) for row in self._rows)

    @property
    def domains(self) -> dict[str, int]:
        """Number of samples by domain."""
        return self._counts(*self._columns.domains)

    @property
    def splits(self) -> dict[str, int]:
        """Number of samples by split."""
        return self._counts(*self._columns.splits)

    def take(self, indices: NDArray[np.integer]) -> "Samples":
        """Return the samples at some places of these."""
        return Samples(self._columns, self._rows[indices])

    def of(self, *, domain: str | None = None, split: str | None = None) -> "Samples":
        """Return the samples of a domain and of a split; None means any."""
        chosen = np.ones(len(self), dtype=bool)
        for name, (names, codes) in (
            (domain, self._columns.domains),
            (split, self._columns.splits),
        ):
            if name is not None:
                code = names.index(name) if name in names else -1
                chosen &= codes[self._rows] == code
        return Samples(self._columns, self._rows[chosen])

    def _counts(self, names: list[str], codes: NDArray[np.int32]) -> dict[str, int]:
        counts = np.bincount(codes[self._rows], minlength=len(names)).tolist()
        return {name: count for name, count in sorted(zip(names, counts, strict=True)) if count}


def own_path(kind: str, name: str) -> Path:
    """Return where a prepared dataset keeps a file of its own, relative to its root.

    The files are spread over 256 folders, so that none holds more than some thousand of a million.

    Args:
        kind: "images" or "labels".
        name: Of the file.
    """
    return Path(kind, blake2b(_encoded(name), digest_size=1).hexdigest(), name)


def ids_of(samples: Sequence[Sample]) -> list[str]:
    """Return the ids of samples, without making their paths where that can be avoided."""
    return list(samples.ids) if isinstance(samples, Samples) else [s.id for s in samples]


def require_last_line(manifest: Path) -> None:
    """Raise DataError where a manifest is missing, torn or empty, without reading it all."""
    with manifest.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:  # as a power cut leaves it; `prepare` writes no dataset without samples
            raise DataError(f"{manifest} is empty.")
        file.seek(-min(size, _LONGEST_LINE), os.SEEK_END)
        _Columns(manifest.parent, file.read().splitlines(keepends=True)[-1:])


def _parsed(line: bytes, number: int) -> list[bytes]:
    """Return the values of a line that is not as pinmem writes most, or raise DataError."""
    name = f"line {number} of the manifest"
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise DataError(f"{name} is not UTF-8 text.") from None
    values = parse_json(text, name)
    if not isinstance(values, dict) or values.keys() != _NAMES | _SIDES:
        raise DataError(f"{name} does not hold the fields of a sample.")
    if not all(isinstance(values[key], str) for key in _NAMES):
        raise DataError(f"{name} holds an id, path, split or domain that is not a text.")
    if not all(type(values[key]) is int and 0 < values[key] < 10**9 for key in _SIDES):
        raise DataError(f"{name} holds a width or height that is not a number of pixels.")
    return [_encoded(str(values[key])) for key in _ORDER]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


def _absolute(root: Path, path: str | Path) -> Path:
    return Path(os.path.normpath(root / path))
