"""Packs: a prepared dataset as one file for another machine."""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from pinmem_core.data.archive_readers import MOST_MEMBERS
from pinmem_core.data.archives import extract
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import card_of_user, get_card, read_card, shipped_cards, write_card
from pinmem_core.data.convert import (
    Record,
    Reencoding,
    count_pixels,
    file_digest,
    label_digest,
    own_files,
    read_records,
    totals,
)
from pinmem_core.data.prepared import (
    LARGEST_SUMMARY,
    MANIFEST,
    RECORDS,
    SCHEMA_VERSION,
    SUMMARY,
    PreparedDataset,
    digest,
)
from pinmem_core.data.samples import Sample, own_path
from pinmem_core.documents import json_text, parse_json, read_json_object, read_text
from pinmem_core.errors import ConfigError, DataError, MachineError, unknown_name
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.files import staged_folder, write_atomic, write_lines
from pinmem_core.home import dataset_root
from pinmem_core.images import check_image, image_size, read_image, read_train_ids
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.parallel import parallel_map
from pinmem_core.paths import as_portable_name, expanded, folder_size
from pinmem_core.png import label_png

FORMAT_VERSION = 1
"""Raised whenever older versions of pinmem would misread a pack."""
HEADER = "pinmem-pack.json"
"""A pack's first member: the version of its format, and what is inside."""
CARD = "card.yaml"
"""Its second member: the card of the dataset."""

IMAGE_DIGESTS = "images.sha256"
"""Its last member: the SHA-256 of every image, as `sha256sum` writes and checks it."""

_AT_ONCE = 64

Content = Path | bytes
"""Of a member: the file to copy, or the bytes themselves."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PackedSample:
    """A sample where it lies here, and its record in the pack."""

    source: Sample
    record: Record


def packed_samples(
    dataset: PreparedDataset,
    splits: Sequence[str],
    reencoding: Reencoding | None = None,
    jobs: int | None = None,
    on_event: Listener = ignore,
) -> list[PackedSample]:
    """Return what a pack will hold of a dataset, every label read and checked.

    Args:
        dataset: The dataset.
        splits: Which to pack; none means all.
        reencoding: How images will be written anew.
        jobs: Labels read at once; None for one a core.
        on_event: Hears of the progress.

    Raises:
        ConfigError: A split does not exist.
        DataError: A label cannot be read, or is not the one that was prepared.
    """
    for split in splits:
        if split not in dataset.counts:
            raise unknown_name(f"split of {dataset.name}", split, dataset.counts)
    samples = [sample for sample in dataset.samples if not splits or sample.split in splits]
    digests = {record.sample.id: record.label_sha256 for record in read_records(dataset.root)}

    def pack(sample: Sample) -> PackedSample:
        return PackedSample(sample, _record(sample, digests.get(sample.id), reencoding))

    packed = []
    with closing(parallel_map(pack, samples, jobs)) as results:
        for item in results:
            packed.append(item)
            on_event(Progress("checking labels", len(packed), len(samples)))
    return packed


def texts(
    card: DatasetCard, summary: Mapping[str, Any], packed: Iterable[PackedSample]
) -> Iterator[tuple[str, bytes]]:
    """Yield the names and bytes of the members that come before the pictures."""
    records = [item.record for item in packed]
    header = {
        "format_version": FORMAT_VERSION,
        "dataset": card.name,
        "samples": len(records),
        "digest": summary["digest"],
    }
    yield HEADER, as_json(header)
    yield CARD, _yaml(card)
    yield SUMMARY, as_json(summary)
    yield MANIFEST, "".join(f"{record.sample.to_json()}\n" for record in records).encode()
    yield RECORDS, "".join(f"{record.to_json()}\n" for record in records).encode()


def pictures(
    packed: Iterable[PackedSample], reencoding: Reencoding | None = None, jobs: int | None = None
) -> Generator[tuple[str, Content], None, None]:
    """Yield the names and contents of labels and images, each kind sorted by name.

    Raises:
        DataError: A picture cannot be read, or is not the one that was prepared.
    """
    labels = {item.record.sample.label.as_posix(): item.source for item in packed}
    images = {item.record.sample.image.as_posix(): item.source for item in packed}
    for sources, content in ((labels, _label), (images, _image)):

        def made(
            entry: tuple[str, Sample], content: Callable[..., Content] = content
        ) -> tuple[str, Content]:
            name, source = entry
            with source.mendable():
                return name, content(source, reencoding)

        yield from parallel_map(made, sorted(sources.items()), jobs)


def packed_summary(
    summary: Mapping[str, Any],
    packed: Sequence[PackedSample],
    reencoding: Reencoding | None = None,
) -> dict[str, Any]:
    """Return what `dataset.json` will say in a pack; unpacking adds the bytes of the pictures."""
    return {
        **{key: value for key, value in summary.items() if key != "bytes"},
        **totals([item.record for item in packed]),
        "splits": sorted({item.source.split for item in packed}),
        "reencoding": asdict(reencoding) if reencoding else summary["reencoding"],
        "sources": [],
        "excluded": [_without_folders(defect) for defect in summary["excluded"]],
    }


def _record(sample: Sample, sha256: str | None, reencoding: Reencoding | None) -> Record:
    """Return the record that a sample will have in a pack."""
    with sample.mendable():
        train_ids = read_train_ids(sample.label)
        if label_digest(train_ids) != sha256:
            raise _changed(sample.label)
    if reencoding:
        train_ids = reencoding.label(train_ids)
    height, width = train_ids.shape
    suffix = reencoding.suffix if reencoding else sample.image.suffix
    name = as_portable_name(sample.id)
    packed = replace(
        sample,
        image=own_path("images", name + as_portable_name(suffix)),
        label=own_path("labels", f"{name}.png"),
        width=width,
        height=height,
    )
    # No key: no other machine has what these files were made from.
    return Record("", packed, label_digest(train_ids), count_pixels(train_ids))


def _label(sample: Sample, reencoding: Reencoding | None) -> Content:
    return label_png(reencoding.label(read_train_ids(sample.label))) if reencoding else sample.label


def _image(sample: Sample, reencoding: Reencoding | None) -> Content:
    if image_size(sample.image) != (sample.width, sample.height):
        raise _changed(sample.image)
    if reencoding:
        return reencoding.image(read_image(sample.image))
    check_image(sample.image)
    return sample.image


def content_digest(content: Content) -> str:
    """Return the SHA-256 of a member."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return file_digest(content)


def _changed(path: Path) -> DataError:
    return DataError(f"{path} has changed since the dataset was prepared.")


def _without_folders(defect: Mapping[str, str]) -> dict[str, str]:
    """Return a defect that keeps the last two parts of its file's path."""
    path = PurePath(defect["file"])
    short = "/".join(path.relative_to(path.anchor).parts[-2:])
    return {**defect, "file": short, "reason": defect["reason"].replace(defect["file"], short)}


def as_json(values: Mapping[str, Any]) -> bytes:
    """Return an object as the text of a file."""
    return (json_text(values, indent=2) + "\n").encode()


def _yaml(card: DatasetCard) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, CARD)
        write_card(card, path, shared=True)
        return path.read_bytes()


_LONGEST_TEXT = 16 << 20  # as of a card that is a file of its own
_LARGEST_DIGESTS = 1 << 28
"""Bytes of the digests of all images, some hundred for each."""
_SHOWN = 3
_TEXTS = 8
"""Members of a pack that are no pictures, at most."""
_MOST_LISTED = 100_000
"""Entries of split lists in a card of one file, which has to stay below the limits of YAML."""


@dataclass(frozen=True)
class PackSummary:
    """What was packed.

    Attributes:
        path: The file.
        samples: How many it holds.
        bytes: Its size.
        digest: Of the dataset inside.
    """

    path: Path
    samples: int
    bytes: int
    digest: str


def pack(
    name: str,
    out: Path,
    *,
    reencoding: Reencoding | None = None,
    splits: Sequence[str] = (),
    overwrite: bool = False,
    jobs: int | None = None,
    on_event: Listener = ignore,
) -> PackSummary:
    """Write a prepared dataset and its images to the file `out`, whole or not at all.

    Args:
        name: Of the dataset.
        out: The pack, a ".tar".
        reencoding: How images are written anew; None copies their files as they are.
        splits: Which to pack; none means all.
        overwrite: Whether `out` may exist.
        jobs: Pictures read and written at once; None for one a core.
        on_event: Hears of the progress.

    Raises:
        ConfigError: The dataset or a split is unknown, or `out` exists or is no ".tar".
        DataError: The dataset is not prepared, or its files have changed since.
        MachineError: `out` cannot be written, or another process is changing the dataset.
    """
    out = expanded(out).absolute()
    _refuse_place(out, overwrite=overwrite)
    card = get_card(name)
    with hold_lock(lock_file(dataset_root(name)), f"the dataset {name}", on_event):
        dataset = PreparedDataset.open(name)
        chosen = [count for split, count in dataset.counts.items() if split in (splits or {split})]
        _refuse_too_many(card, sum(chosen))
        packed = packed_samples(dataset, splits, reencoding, jobs, on_event)
        summary = packed_summary(dataset.summary, packed, reencoding)
        with _tar(out) as tar, closing(pictures(packed, reencoding, jobs)) as files:
            for member, text in texts(card, summary, packed):
                _add(tar, member, text)
            digests = []
            for done, (member, content) in enumerate(files, start=1):
                _add(tar, member, content)
                if member.startswith("images/"):
                    digests.append(f"{content_digest(content)}  {member}\n")
                on_event(Progress("packing", done, 2 * len(packed)))
            _add(tar, IMAGE_DIGESTS, "".join(digests).encode())
    return PackSummary(out, len(packed), out.stat().st_size, summary["digest"])


def is_pack(path: Path) -> bool:
    """Tell whether the file `path` is a pack, by what it begins with."""
    try:
        with tarfile.open(path, "r:") as tar:
            first = tar.next()
    except (OSError, tarfile.TarError):
        return False
    return first is not None and first.name == HEADER


def packed_card(path: Path) -> DatasetCard:
    """Return the card of the dataset in a pack.

    Raises:
        DataError: `path` is no pack, or one that this version of pinmem cannot read.
    """
    return _read_head(path)[1]


def unpack(path: Path, name: str | None = None, *, on_event: Listener = ignore) -> PreparedDataset:
    """Put the dataset of a pack in its place under `PINMEM_HOME`, once every file is checked.

    A prepared dataset of the same name is replaced.

    Args:
        path: The pack.
        name: The dataset that it has to hold; None for any.
        on_event: Hears of the progress.

    Raises:
        ConfigError: The pack holds another dataset than `name`.
        DataError: The pack is damaged or hostile, or of another version of pinmem.
        MachineError: The disk is too small, or another process is changing the dataset.
    """
    path = expanded(path).absolute()
    header, card = _read_head(path)
    if name not in (None, card.name):
        raise ConfigError(f"{path} holds the dataset '{card.name}', not '{name}'.")
    root = dataset_root(card.name)
    news = _news_of_card(path, card)
    lock = hold_lock(lock_file(root), f"the dataset {card.name}", on_event)
    with lock, _workplace(root) as parent:
        folder = extract(path, parent, on_event=on_event)
        _check(path, folder, header, on_event)
        _note_bytes(folder)
        with staged_folder(root) as staging:
            for part in (MANIFEST, RECORDS, SUMMARY, "labels", "images"):
                (folder / part).rename(staging / part)
            if card.name not in shipped_cards():
                (folder / CARD).rename(staging / card_of_user(card.name).name)
    if news:
        on_event(Notice(news, warning=True))
    return PreparedDataset.open(card.name)


def _news_of_card(path: Path, card: DatasetCard) -> str | None:
    """Return what a pack's card changes here: later commands fetch and prepare by it."""
    if card.name in shipped_cards():
        return None
    place = card_of_user(card.name)
    try:
        if read_card(place) == card:
            return None
    except ConfigError:
        pass  # there is none, or a damaged one
    done = "taken in place of the one that was here" if place.exists() else "now known here"
    addresses = sorted({url for archive in card.archives for url in archive.url})
    sites = f"; it names archives at {', '.join(addresses[:_SHOWN])}" if addresses else ""
    return f"{path} brought its own card of '{card.name}' ({card.title}), {done}{sites}"


def _refuse_place(out: Path, *, overwrite: bool) -> None:
    if out.suffix != ".tar":
        raise ConfigError(f"a pack is a .tar, which {out} is not.", "Name it 'NAME.tar'.")
    if out.is_dir() or (out.exists() and not overwrite):
        raise ConfigError(f"{out} exists.", "Name another file, or add --force.")


def _refuse_too_many(card: DatasetCard, samples: int) -> None:
    """Refuse what could be packed, but not be unpacked again."""
    most = MOST_MEMBERS // 2 - _TEXTS
    if samples > most:
        raise DataError(
            f"a pack holds at most {most:,} samples, and this one would hold {samples:,}.",
            "Pack some splits alone (--splits val), or copy PINMEM_HOME and the images.",
        )
    listed = sum(map(len, card.split_lists.values()))
    if listed > _MOST_LISTED:
        raise DataError(
            f"the card of {card.name} lists {listed:,} samples in its splits; the card in a pack "
            f"may list {_MOST_LISTED:,}.",
            "Use ranges (00001..00010) or folders for the splits, and prepare the dataset again.",
        )


@contextmanager
def _tar(out: Path) -> Iterator[tarfile.TarFile]:
    """Yield an archive that takes the place of `out` when the block succeeds."""
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(part, "w") as tar:
            yield tar
        part.replace(out)
    except OSError as error:
        hint = "Make room there, or name a file on another disk."
        raise MachineError(f"cannot write {out}: {error.strerror or error}.", hint) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _add(tar: tarfile.TarFile, name: str, content: Content) -> None:
    """Add a member that tells nothing of its file but its name and size."""
    info = tarfile.TarInfo(name)
    if isinstance(content, bytes):
        info.size = len(content)
        tar.addfile(info, BytesIO(content))
    else:
        info.size = content.stat().st_size
        with content.open("rb") as file:
            tar.addfile(info, file)


@dataclass(frozen=True)
class _Header:
    dataset: str
    samples: int
    digest: str


def _read_head(path: Path) -> tuple[_Header, DatasetCard]:
    """Return what a pack says of itself, and its card."""
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        with tarfile.open(path, "r:") as tar:
            fields = dict(parse_json(_next_text(tar, HEADER).decode(), f"{path}: {HEADER}"))
            card_text = _next_text(tar, CARD)
        version = fields.pop("format_version")
        header = _Header(**fields)
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        hint = "A pack is what 'pinmem data pack' has written."
        raise DataError(f"{path} is no pack, or a damaged one.", hint) from error
    if version != FORMAT_VERSION:
        raise _other_version(path)
    card = _card(path, card_text)
    if card.name != header.dataset:
        raise _damaged(path, f"it says '{header.dataset}', but its card says '{card.name}'")
    return header, card


def _next_text(tar: tarfile.TarFile, name: str) -> bytes:
    info = tar.next()
    if info is None or info.name != name or info.size > _LONGEST_TEXT:
        raise ValueError(f"no {name}")
    file = tar.extractfile(info)
    return file.read() if file else b""


def _card(path: Path, text: bytes) -> DatasetCard:
    with TemporaryDirectory() as folder:
        file = Path(folder, CARD)
        file.write_bytes(text)
        try:
            return read_card(file)
        except ConfigError as error:
            reason = error.message.replace(str(file), CARD).rstrip(".")
            raise _damaged(path, reason) from error


@contextmanager
def _workplace(root: Path) -> Iterator[Path]:
    """Yield an empty neighbour of `root` that vanishes with the block."""
    folder = root.with_name(f".{root.name}.unpacked")
    shutil.rmtree(folder, ignore_errors=True)  # a killed process has left it
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(path: Path, folder: Path, header: _Header, on_event: Listener) -> None:
    """Refuse a pack, unpacked into `folder`, whose files are not those that were packed."""
    try:
        summary = read_json_object(folder / SUMMARY, LARGEST_SUMMARY)
        manifest = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, DataError) as error:
        raise _damaged(path, f"its {SUMMARY} or {MANIFEST} cannot be read") from error
    if summary.get("schema_version") != SCHEMA_VERSION:
        raise _other_version(path)
    records = list(read_records(folder))
    found = digest((record.sample, record.label_sha256) for record in records)
    said = (summary.get("dataset"), summary.get("digest"), found, len(records))
    if said != (header.dataset, header.digest, header.digest, header.samples):
        raise _damaged(path, "its parts are of different datasets")
    if manifest != [record.sample.to_json() for record in records]:
        raise _damaged(path, "its manifest is not of its records")
    if (folder / IMAGE_DIGESTS).exists():  # packs of earlier versions have none
        digests = _image_digests(path, folder)
        images = [record.sample.image.as_posix() for record in records]
        pairs = zip(records, images, strict=True)
        records = [replace(record, image_sha256=digests.get(image, "")) for record, image in pairs]
    _check_pictures(path, folder, records, on_event)
    write_lines(folder / RECORDS, (record.to_json() for record in records))


def _note_bytes(folder: Path) -> None:
    """Note in an unpacked `dataset.json` how many bytes its pictures have."""
    summary = read_json_object(folder / SUMMARY, LARGEST_SUMMARY)
    summary["bytes"] = sum(folder_size(folder / kind) for kind in ("labels", "images"))
    write_atomic(folder / SUMMARY, as_json(summary))


def _image_digests(path: Path, folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each image by its name."""
    try:
        lines = read_text(folder / IMAGE_DIGESTS, _LARGEST_DIGESTS).splitlines()
    except DataError as error:
        raise _damaged(path, f"its {IMAGE_DIGESTS} cannot be read") from error
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}


def _check_pictures(
    path: Path, folder: Path, records: Sequence[Record], on_event: Listener
) -> None:
    def fault(record: Record) -> str | None:
        return _fault(folder, record)

    with closing(parallel_map(fault, records)) as faults:
        for done, found in enumerate(faults, start=1):
            if found:
                raise _damaged(path, found)
            on_event(Progress("checking", done, len(records)))


def _fault(folder: Path, record: Record) -> str | None:
    """Return what is wrong with the files of a sample, None if nothing."""
    sample = record.sample
    paths = [sample.image, sample.label]
    if own_files(sample) != paths or any(".." in path.parts for path in paths):
        return f"the files of '{sample.id}' would lie outside of the dataset"
    try:
        check_image(folder / sample.image)
        if record.image_sha256 not in (None, file_digest(folder / sample.image)):
            return f"{sample.image} is not the image that was packed"
        size = image_size(folder / sample.image)
        train_ids = read_train_ids(folder / sample.label)
    except (DataError, ValueError) as error:
        return str(error).replace(f"{folder}{os.sep}", "").rstrip(".")
    if size != (sample.width, sample.height):
        return f"{sample.image} is not of the size that was packed"
    if label_digest(train_ids) != record.label_sha256 or train_ids.shape != size[::-1]:
        return f"{sample.label} is not the label that was packed"
    return None


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged: {reason}.", "Copy it again, or pack it again.")


def _other_version(path: Path) -> DataError:
    return DataError(
        f"{path} was packed by another version of pinmem.",
        "Have the same version on both machines, and pack it again.",
    )
