"""The samples of a prepared dataset, stored as columns."""

import json
import operator
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from pinmem_core.documents import parse_json, validation_message
from pinmem_core.errors import DataError
from pinmem_core.images import read_image
from pinmem_core.label_files import read_train_ids
from pinmem_core.label_space import CITYSCAPES, LabelSpace

Item = TypeVar("Item")


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` evenly spaced items, the first and the last included; at most all."""
    indices = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[index] for index in indices]


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("the value is not a text")
    return value


Text = Annotated[str, PlainValidator(_as_text)]
"""A text; unlike pydantic's own type, it may hold bytes of file names that are not UTF-8."""


def _not_written(value: object) -> object:
    raise ValueError("a manifest has no such key")


@dataclass(frozen=True)
class LabelReading:
    """The label space of label files, and the one into which they are read.

    Attributes:
        own: Label space of the files.
        space: Label space of the trainIds that are read.
        table: TrainIds of `space` by those of `own`, 256 bytes; None if both are the same.
    """

    own: LabelSpace = CITYSCAPES
    space: LabelSpace = CITYSCAPES
    table: bytes | None = None

    def to(self, space: LabelSpace) -> "LabelReading":
        """Return the reading of the same files into `space`.

        Raises:
            ConfigError: The space of the files cannot be mapped to it.
        """
        table = None if self.own.same_as(space) else self.own.table_to(space).tobytes()
        return LabelReading(self.own, space, table)

    @property
    def classes(self) -> dict[str, str | None]:
        """Class of `space` by class of the files; None for a class that is ignored."""
        names = dict(enumerate(self.space.names))
        table = range(256) if self.table is None else self.table
        return {own: names.get(table[train_id]) for own, train_id in self.own.train_ids.items()}

    @property
    def how_to_assign(self) -> str | None:
        """Hint for files without a pixel of `space`; None if their own classes are read."""
        if self.table is None:
            return None
        return (
            f"Assign the classes '{self.own.name}' to these in the card, 'label_space: maps: "
            f"{self.space.name}: ...', and prepare it again with this card."
        )

    def read(self, path: Path, *, checked: bool = False) -> NDArray[np.uint8]:
        """Return the trainIds (H, W) of a label file; `checked` is that of `read_train_ids`."""
        train_ids = read_train_ids(path, classes=len(self.own), checked=checked)
        if self.table is None:
            return train_ids
        translated = train_ids.tobytes().translate(self.table)
        return np.frombuffer(translated, np.uint8).reshape(train_ids.shape)


_OWN_SPACE = LabelReading()
_FilePath = Annotated[Path, PlainValidator(lambda value: Path(_as_text(value)))]
_Side = Annotated[int, Field(strict=True, gt=0, lt=10**9)]


@dataclass(frozen=True)
class Sample:
    """One line of a manifest.

    Attributes:
        id: Id, unique in its dataset.
        image: Path of the image, absolute or relative to the dataset's root.
        label: Path of the trainId PNG, absolute or relative to the dataset's root.
        split: "train", "val" or "test".
        domain: Domain inside the dataset.
        width: Width of image and label in pixels.
        height: Height of image and label in pixels.
        reading: How the label is read. It is not part of a manifest.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: Text
    image: _FilePath
    label: _FilePath
    split: Text
    domain: Text
    width: _Side
    height: _Side
    reading: Annotated[LabelReading, PlainValidator(_not_written)] = field(
        default=_OWN_SPACE, compare=False, repr=False
    )

    @property
    def dataset(self) -> str:
        """The name of the dataset; requires absolute paths."""
        folders = (path.parent.name for path in self.label.parents if path.name == "labels")
        return next(folders, self.label.parent.name)

    def to_json(self) -> str:
        """Return the sample as a line of a manifest."""
        values = {name: getattr(self, name) for name in _KEYS}
        return json.dumps({**values, "image": str(self.image), "label": str(self.label)})

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Decode the image (H, W, 3) and its trainIds (H, W), without checking whole files.

        Raises:
            DataError: A file cannot be read, the label holds values that are not trainIds, or the
                sizes differ.
        """
        with self.repair_hint():
            image = read_image(self.image, checked=True)
            train_ids = self.reading.read(self.label, checked=True)
            if train_ids.shape != image.shape[:2]:
                raise DataError(
                    f"{self.label} is {train_ids.shape[1]}x{train_ids.shape[0]}, but its image "
                    f"{self.image} is {image.shape[1]}x{image.shape[0]}."
                )
            return image, train_ids

    @contextmanager
    def repair_hint(self) -> Iterator[None]:
        """Add the commands that repair the dataset to a `DataError` of the block."""
        try:
            yield
        except DataError as error:
            raise DataError(
                error.message,
                f"'pinmem data verify {self.dataset}' lists all damaged files. Restore them, leave "
                f"them out with 'pinmem data prepare {self.dataset}', or name the folder to which "
                f"they have moved with 'pinmem data prepare {self.dataset} --from FOLDER'.",
            ) from error

    def below(self, root: Path) -> "Sample":
        """Return the sample with absolute paths, resolved against `root`."""
        image, label = (_absolute(root, path) for path in (self.image, self.label))
        return replace(self, image=image, label=label)


_KEYS = tuple(each.name for each in fields(Sample) if each.compare)
"""The keys of a line."""
_ADAPTER = TypeAdapter(Sample)
_TEXT = rb'"([ !#-\[\]-~]*)"'
_NUMBER = rb"([1-9][0-9]{0,8})"
_AS_WRITTEN = re.compile(
    rb'\{"id": %b, "image": %b, "label": %b, "split": %b, "domain": %b, '
    rb'"width": %b, "height": %b\}\n' % (*[_TEXT] * 5, *[_NUMBER] * 2)
)
"""A line of `Sample.to_json` without escaped letters; five times as fast as a JSON parser."""
_LONGEST_LINE = 1 << 20


class _Names:
    """A column of text with few different values, stored as one number per sample."""

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
            values = match.groups() if match else _parse(line, number)
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

    def value(self, row: int, column: int) -> str:
        """Return the id (column 0), image (1) or label (2) of a sample."""
        first = 3 * row + column
        return _decoded(self.text[self.ends[first] : self.ends[first + 1]])

    def sample(self, row: int, reading: LabelReading) -> Sample:
        width, height = self.sizes[row].tolist()
        return Sample(
            self.value(row, 0),
            _absolute(self.root, self.value(row, 1)),
            _absolute(self.root, self.value(row, 2)),
            self.splits[0][self.splits[1][row]],
            self.domains[0][self.domains[1][row]],
            width,
            height,
            reading,
        )


class Samples(Sequence[Sample]):
    """Samples of a prepared dataset, in order.

    Each `Sample` is created on access. Selections share the columns of the whole dataset.

    Args:
        columns: All samples of the dataset.
        rows: Rows of the selection; None for all.
        reading: How the labels are read.
    """

    def __init__(
        self,
        columns: _Columns,
        rows: NDArray[np.integer] | None = None,
        reading: LabelReading = _OWN_SPACE,
    ) -> None:
        self._columns = columns
        self._reading = reading
        self._rows = np.arange(len(columns.sizes), dtype=np.int32) if rows is None else rows

    @classmethod
    def read(cls, manifest: Path, space: LabelSpace = CITYSCAPES) -> "Samples":
        """Read a manifest; the samples have absolute paths.

        Args:
            manifest: The file.
            space: Label space of the labels.

        Raises:
            OSError: The file cannot be read.
            DataError: A line is damaged.
        """
        if not manifest.is_file():
            raise DataError(f"there is no {manifest.name}.")
        with manifest.open("rb") as file:
            lines = iter(partial(file.readline, _LONGEST_LINE), b"")
            return cls(_Columns(manifest.parent, lines), reading=LabelReading(space, space))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        """Return a sample, or the samples of a slice."""
        if isinstance(index, slice):
            return self.take(index)
        return self._columns.sample(int(self._rows[index]), self._reading)

    def __eq__(self, other: object) -> bool:
        """Return whether `other` holds the same samples in the same order."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    @property
    def label_space(self) -> LabelSpace:
        """The label space of the trainIds that `Sample.read` returns."""
        return self._reading.space

    def in_space(self, space: LabelSpace) -> "Samples":
        """Return the samples with the trainIds of `space`.

        Raises:
            ConfigError: The label space of the dataset cannot be mapped to it.
        """
        return Samples(self._columns, self._rows, self._reading.to(space))

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

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_] | slice) -> "Samples":
        """Return the samples at `indices`."""
        return Samples(self._columns, self._rows[indices], self._reading)

    def of(
        self, *, domain: str | None = None, split: str | Sequence[str] | None = None
    ) -> "Samples":
        """Return the samples of a domain and of one or more splits; None for any."""
        chosen = np.ones(len(self), dtype=bool)
        columns = (domain, self._columns.domains), (split, self._columns.splits)
        for wanted, (names, codes) in columns:
            if wanted is not None:
                members = {wanted} if isinstance(wanted, str) else {*wanted}
                chosen &= np.array([name in members for name in names], bool)[codes[self._rows]]
        return self.take(chosen)

    def _counts(self, names: list[str], codes: NDArray[np.int32]) -> dict[str, int]:
        counts = np.bincount(codes[self._rows], minlength=len(names)).tolist()
        return {name: count for name, count in sorted(zip(names, counts, strict=True)) if count}


def own_path(kind: str, name: str) -> Path:
    """Return the path of a file inside a prepared dataset, relative to its root.

    The files are distributed over 256 folders, which keeps folders of a million samples small.

    Args:
        kind: "images" or "labels".
        name: Name of the file.
    """
    return Path(kind, blake2b(_encoded(name), digest_size=1).hexdigest(), name)


def ids_of(samples: Sequence[Sample]) -> list[str]:
    """Return the ids of samples, without creating `Sample` objects where possible."""
    return list(samples.ids) if isinstance(samples, Samples) else [s.id for s in samples]


def require_last_line(manifest: Path) -> None:
    """Raise `DataError` if a manifest is empty or its last line is damaged.

    Only the end of the file is read.
    """
    with manifest.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:  # after a power cut; `prepare` writes no dataset without samples
            raise DataError(f"{manifest} is empty.")
        file.seek(-min(size, _LONGEST_LINE), os.SEEK_END)
        _Columns(manifest.parent, file.read().splitlines(keepends=True)[-1:])


def _parse(line: bytes, number: int) -> list[bytes]:
    """Return the values of a line that `_AS_WRITTEN` does not match."""
    name = f"line {number} of the manifest"
    try:
        values: Any = parse_json(line.decode(), name)
        _ADAPTER.validate_python(values)
    except UnicodeDecodeError:
        raise DataError(f"{name} is not UTF-8 text.") from None
    except ValidationError as error:
        raise DataError(f"{name} is not a sample: {validation_message(error)}.") from None
    return [_encoded(str(values[key])) for key in _KEYS]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


def _absolute(root: Path, path: str | Path) -> Path:
    return Path(os.path.normpath(root / path))
