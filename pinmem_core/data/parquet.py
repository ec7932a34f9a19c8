"""Datasets in parquet files, as the Hugging Face Hub has them: images and masks in columns."""

import json
import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinmem_core.data.archives import MARKER, SMALL
from pinmem_core.data.card import ParquetColumns
from pinmem_core.data.raw_files import SPLIT, split_called
from pinmem_core.documents import json_text, read_json_object
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import Listener, ThrottledProgress, ignore
from pinmem_core.files import staged_folder
from pinmem_core.paths import as_portable_name, iter_files

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

NAMES = "id2label.json"
"""Name of the file with the names of the classes, as models have it."""
_SUFFIX = ".parquet"
_BATCH = 16  # rows decoded at once
_LARGEST_GROWTH = 50  # maximum ratio of the size of the images to that of their file
_LABEL = re.compile(r"label|mask|annot|segm|semantic|(?<![a-z])(gt|seg|target)", re.IGNORECASE)
_NO_LABEL = re.compile(r"instance|panoptic|depth|box", re.IGNORECASE)
_IMAGE = re.compile(r"image|img|pixel|picture|photo|rgb", re.IGNORECASE)
_FORMATS = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


def parquet_files(source: Path) -> list[Path]:
    """Return the parquet files of a source, sorted; the source may be one itself."""
    if source.is_file():
        return [source] if source.suffix.lower() == _SUFFIX else []
    return sorted(source / name for name in iter_files(source) if name.lower().endswith(_SUFFIX))


def count_rows(sources: Sequence[Path]) -> dict[str, int]:
    """Return the number of rows by the split in the names of files or their folders; else "train".

    Raises:
        DataError: A file cannot be read.
        MachineError: pyarrow is missing.
    """
    counts: Counter[str] = Counter()
    for source in sources:
        for path in parquet_files(source):
            names = (split_called(part) for part in reversed(_place(path, source).parts))
            split = next((name for name in names if name in ("train", "val", "test")), "train")
            with _opened(path) as file:
                counts[split] += file.metadata.num_rows
    return dict(sorted(counts.items()))


def guess_columns(files: Sequence[Path]) -> ParquetColumns:
    """Return the columns of images and masks.

    Raises:
        DataError: A file cannot be read, or has no such columns.
        MachineError: pyarrow is missing.
    """
    with _opened(files[0]) as file:
        schema = file.schema_arrow
    stored = [field.name for field in schema if _holds_bytes(field.type)]
    labels = [name for name in stored if _LABEL.search(name) and not _NO_LABEL.search(name)]
    others = [name for name in stored if name not in labels and not _NO_LABEL.search(name)]
    images = [name for name in others if _IMAGE.search(name)] or others
    if not labels or not images:
        raise DataError(
            f"{files[0]} has no columns of images and masks: it has {', '.join(schema.names)}.",
            "Name the columns that hold files, such as 'image' and 'label', and the mask one "
            "'label', 'mask' or 'annotation'.",
        )
    return ParquetColumns(image=images[0], label=labels[0])


def unpack_parquet(
    source: Path,
    folder: Path,
    columns: ParquetColumns,
    *,
    rows: int | None = None,
    on_event: Listener = ignore,
) -> Path:
    """Write the images and masks of parquet files as files, unless that has been done before.

    The images of `DOMAIN/train-00000-of-00002.parquet` are `DOMAIN/train/images/*`, and its masks
    `DOMAIN/train/labels/*`.

    Args:
        source: Parquet file, or folder with such files at any depth.
        folder: Parent of the folder to write.
        columns: Columns of images and masks.
        rows: Maximum number of rows of each file; None for all.
        on_event: Callback for progress events.

    Returns:
        The folder. It appears complete or not at all.

    Raises:
        DataError: A file cannot be read, lacks a column, or does not hold images.
        MachineError: pyarrow is missing, or the disk is full.
    """
    files = parquet_files(source)
    target = folder / f"parquet-{blake2b(str(source).encode(), digest_size=6).hexdigest()}"
    states = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    mark = json.loads(json_text({"files": states, **columns.model_dump()}))
    if (target / MARKER).is_file() and read_json_object(target / MARKER) == mark:
        return target
    with staged_folder(target) as staging:
        for path in files:
            _write_rows(path, staging / _place(path, source), columns, rows, on_event)
        if names := _class_names(files[0], columns.label):
            (staging / NAMES).write_text(json_text(names), encoding="utf-8")
        (staging / MARKER).write_text(json_text(mark), encoding="utf-8")
    return target


def _place(path: Path, source: Path) -> Path:
    """Return the folder of a file's rows: its own folders, and the split in its name."""
    folders = path.relative_to(source).parent.parts if path != source else ()
    parts = [as_portable_name(part) for part in folders if part != "data"]
    split = SPLIT.match(re.split(r"[-_. ]", path.stem)[0])
    return Path(*parts, *([split[2].lower()] if split and not split[1] and not split[3] else []))


def _write_rows(
    path: Path, folder: Path, columns: ParquetColumns, rows: int | None, on_event: Listener
) -> None:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    stem = as_portable_name(path.stem).replace(".", "_")
    left = max(SMALL, _LARGEST_GROWTH * path.stat().st_size)
    with _opened(path) as file:
        total = min(file.metadata.num_rows, rows or file.metadata.num_rows)
    progress = ThrottledProgress(f"unpacking {path.name}", total, on_event)
    with closing(_rows(path, columns)) as pairs:
        for number, (image, label) in enumerate(islice(pairs, rows)):
            left -= len(image) + len(label)
            if left < 0:
                raise DataError(f"{path} would grow to more than {_LARGEST_GROWTH} times its size.")
            for kind, content in (("images", image), ("labels", label)):
                if content:  # 'prepare' reports a row that lacks one
                    name = f"{stem}_{number:06}{_suffix(content)}"
                    (folder / kind / name).write_bytes(content)
            progress.update(number + 1)
    progress.update(total, force=True)


def _rows(path: Path, columns: ParquetColumns) -> Generator[tuple[bytes, bytes], None, None]:
    """Yield the files of the image and the mask of each row; b"" for one that is missing."""
    names = columns.image, columns.label
    with _opened(path) as file:
        for name in names:
            if name not in file.schema_arrow.names:
                known = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path} has no column '{name}': it has {known}.")
        for batch in file.iter_batches(_BATCH, columns=[*names]):
            for values in zip(*(batch[name] for name in names), strict=True):
                image, label = (
                    _content(path, name, value.as_py())
                    for name, value in zip(names, values, strict=True)
                )
                yield image, label


def _content(path: Path, column: str, value: Any) -> bytes:
    if isinstance(value, Mapping):
        if value.get("path") and value.get("bytes") is None:
            raise DataError(
                f"the column '{column}' of {path} holds paths, not images.",
                "Write the dataset with its images inside.",
            )
        value = value.get("bytes")
    if not isinstance(value, bytes | None):
        raise DataError(f"the column '{column}' of {path} does not hold images.")
    return value or b""


def _suffix(content: bytes) -> str:
    return next((suffix for start, suffix in _FORMATS.items() if content.startswith(start)), ".png")


def _holds_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(path: Path, column: str) -> dict[str, str]:
    """Return the names of the classes in the features of a dataset, by number.

    They are those of the column of masks, or of its only list of classes. The class of a whole
    image, such as its scene, is not one of its pixels.
    """
    with _opened(path) as file:
        metadata = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(metadata)["info"]["features"]
        others = [f for f in features.values() if f.get("_type") != "ClassLabel"]
        lists = _names_in(features[column]) or _names_in(others)
        names = lists[0] if len(lists) == 1 else []
        return {str(number): str(name) for number, name in enumerate(names)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _names_in(feature: Any) -> list[list[str]]:
    """Return the lists of names anywhere in the description of a feature."""
    if isinstance(feature, Mapping):
        names = feature.get("names")
        return [names] if isinstance(names, list) else _names_in([*feature.values()])
    parts = feature if isinstance(feature, list) else []
    return [names for part in parts for names in _names_in(part)]


@contextmanager
def _opened(path: Path) -> "Iterator[pq.ParquetFile]":
    """Open a parquet file; errors of the block are those of the file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MachineError(
            "parquet files need pyarrow, which is missing.", "pip install 'pinmem[parquet]'"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read as parquet: {reason}.") from None
