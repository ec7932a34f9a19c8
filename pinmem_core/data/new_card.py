"""Draft a card for a folder of images and labels."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import yaml

from pinmem_core.data.annotation_guess import guess_annotations, image_names
from pinmem_core.data.card import ParquetColumns
from pinmem_core.data.catalog import shipped_cards
from pinmem_core.data.class_guess import class_guess
from pinmem_core.data.label_values import Raw, label_values
from pinmem_core.data.layout_guess import (
    Candidates,
    LayoutGuess,
    best_pairing,
    candidates,
    looks_like_label,
)
from pinmem_core.data.parquet import guess_columns, parquet_files, unpack_parquet
from pinmem_core.data.raw_files import SPLIT, split_called
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.paths import as_text, expanded, iter_files
from pinmem_core.templates import render

_TEMPLATE = Path(__file__).parent / "templates" / "new_card.yaml"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_EXAMPLES = 3
_ROWS_SAMPLED = 32  # of each parquet file
_ONE_LINE = 1 << 30
_LIST_SUFFIXES = (".txt", ".lst", ".csv")
_LARGEST_LIST = 64 << 20


def new_card(folder: Path, name: str, on_event: Listener = ignore) -> str:
    """Return the draft of a card as commented YAML.

    Args:
        folder: Folder with images and labels, at any depth.
        name: Name of the dataset.
        on_event: Callback for warnings.

    Raises:
        ConfigError: The name is not allowed, or taken.
        DataError: The folder has no pairs of images and labels, or no label can be read.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a dataset.",
            "Use lower-case letters, digits, '-' and '_', and begin with a letter or digit: "
            "'--name mycity'.",
        )
    if name in shipped_cards():
        raise ConfigError(f"'{name}' is a dataset that pinmem knows.", "Choose another name.")
    folder = expanded(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder.", "Name the folder that holds your data; unpack an archive."
        )
    if parquet_files(folder) and guess_annotations(_paths(folder)) is None:
        columns = guess_columns(parquet_files(folder))
        with TemporaryDirectory() as parent:
            sample = unpack_parquet(folder, Path(parent), columns, rows=_ROWS_SAMPLED)
            return _draft(sample, name, on_event, columns, image_names(_paths(folder)))
    return _draft(folder, name, on_event)


def _paths(folder: Path) -> dict[str, Path]:
    return {as_text(path): folder / path for path in iter_files(folder)}


def _draft(
    folder: Path,
    name: str,
    on_event: Listener,
    columns: ParquetColumns | None = None,
    names: Mapping[Raw, str] | None = None,
) -> str:
    """Return the draft of a card for image files and label files.

    Args:
        folder: Folder with the files.
        name: Name of the dataset.
        on_event: Callback for warnings.
        columns: Columns of the parquet files that a sample of the files comes from.
        names: Names of the ids or colours; None for those in the folder.
    """
    paths = _paths(folder)
    annotations = guess_annotations(paths)
    if annotations is None:
        raise _no_layout(folder, candidates(map(PurePosixPath, paths)))
    layout = annotations.layout
    if columns:  # other rows may be images of other formats
        layout = replace(layout, image=f"{layout.image.rpartition('.')[0]}.{{suffix}}")
    labels = label_values(
        [paths[str(pair.label)] for pair in layout.pairs],
        annotations.encoding,
        names or annotations.names,
    )
    lists_folder, lists = ("", {}) if layout.splits else split_lists(paths, layout)
    if layout.more_labels and not lists:
        lists_folder, lists = str(layout.pairs[0].label.parent), _splits_of_labels(layout)
    classes = class_guess(labels)
    if labels.standard_map and not labels.has_names and "ids" not in layout.label.lower():
        message = (
            f"the labels are taken for '{labels.standard_map}' of Cityscapes by their values; "
            "correct the card if they have other classes"
        )
        on_event(Notice(message, warning=True))
    unpaired = _unpaired(layout)
    if unpaired:
        on_event(Notice(unpaired.rstrip("."), warning=True))
    return render(
        _TEMPLATE,
        escape=str,
        quoted=_quoted,
        counts=_counts,
        percent=_percent,
        name=name,
        layout=layout,
        labels=labels,
        lists=lists,
        lists_folder=lists_folder,
        classes=classes,
        ignored=", ".join(map(_quoted, classes.ignored)),
        parquet=columns,
        missing=annotations.missing,
        unpaired=unpaired,
    )


def _unpaired(layout: LayoutGuess) -> str:
    """Return the sentence about images that the layout does not use; "" if there are none."""
    if not layout.unpaired:
        return ""
    count, total = len(layout.unpaired), len(layout.unpaired) + len(layout.pairs)
    example = as_text(str(layout.unpaired[0]))
    return f"{count} of {total} images, such as {example}, have no label where the others have one."


def split_lists(paths: Mapping[str, Path], layout: LayoutGuess) -> tuple[str, dict[str, list[str]]]:
    """Return the folder of the lists that divide the samples, and the ids in each list.

    A list is a text file named like a split ("val", "val_list", "city_val") with a sample on each
    line: its name, or the path of its image. At least half of its lines name a sample, and its
    folder holds at least one other list with the same affixes. Among several such groups of lists,
    the one with the most samples is taken.

    Args:
        paths: Location of each file by its path as text.
        layout: Layout of the samples.
    """
    ids = _ids_by_name(layout)
    groups: dict[tuple[str, str, str], dict[str, list[str]]] = defaultdict(dict)
    for text in sorted(paths):
        path = PurePosixPath(text)
        match = SPLIT.fullmatch(path.stem.lower())
        if match is None or path.suffix.lower() not in _LIST_SUFFIXES:
            continue
        before, split, after = match.groups()
        if before[-1:].isalpha() or after[:1].isalpha():
            continue  # "trainval"
        if listed := _read_list(paths[text], ids):
            groups[str(path.parent), before, after][split_called(split)] = listed
    several = {group: lists for group, lists in groups.items() if len(lists) > 1}
    if not several:
        return "", {}

    def rank(group: tuple[str, str, str]) -> tuple[int, bool]:
        is_semantic = re.search("seg|sem", group[0], re.IGNORECASE) is not None
        return sum(map(len, several[group].values())), is_semantic

    best = max(several, key=rank)
    return best[0], several[best]


def _splits_of_labels(layout: LayoutGuess) -> dict[str, list[str]]:
    """Return the ids in each label file if all of these files are called like splits."""
    lists: dict[str, list[str]] = defaultdict(list)
    for pair, sample_id in zip(layout.pairs, layout.ids, strict=True):
        match = SPLIT.fullmatch(pair.label.stem)
        if not match:
            return {}
        lists[split_called(match[2])].append(sample_id)
    return lists if len(lists) > 1 else {}


def _ids_by_name(layout: LayoutGuess) -> dict[str, str | None]:
    """Return the sample id for each way to write a sample; None for an ambiguous one."""
    ids: dict[str, str | None] = {}
    for pair, sample_id in zip(layout.pairs, layout.ids, strict=True):
        image = pair.image
        for name in {pair.name, image.stem, image.name, str(image), sample_id}:
            ids[name] = sample_id if ids.get(name, sample_id) == sample_id else None
    return ids


def _read_list(path: Path, ids: Mapping[str, str | None]) -> list[str]:
    """Return the sample ids in a list; none if most lines are not samples."""
    if path.stat().st_size > _LARGEST_LIST:
        return []
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    entries = [line.strip() for line in lines if line.strip()]
    listed = [sample_id for entry in entries if (sample_id := _id_of(entry, ids))]
    return listed if 2 * len(listed) >= len(entries) else []


def _id_of(entry: str, ids: Mapping[str, str | None]) -> str | None:
    """Return the sample id of a line, by the whole line or by its first column."""
    for text in (entry, re.split(r"[\s,;]", entry)[0].strip("\"'")):
        path = PurePosixPath(text.replace("\\", "/"))
        for name in (str(path).lstrip("/"), path.name, path.stem):
            if sample_id := ids.get(name):
                return sample_id
    return None


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 0.0001 or not share else "< 0.01%"


def _counts(groups: Mapping[str, int | Sequence[str]]) -> str:
    sizes = {name: n if isinstance(n, int) else len(n) for name, n in groups.items()}
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def _quoted(text: str | int) -> str:
    """Return text as a YAML string on one line, with unprintable characters escaped."""
    if isinstance(text, int):
        return str(text)
    quoted = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=_ONE_LINE)
    return quoted.removesuffix("\n")


def _no_layout(folder: Path, files: Candidates) -> DataError:
    if pairing := best_pairing(files):
        image, label, _ = vars(pairing.pairs[0]).values()
        return DataError(
            f"{folder} has images and labels of the same names, but their folders differ: "
            f"{image} and {label}.",
            "Name the folders alike, e.g. 'train' for both, or write the card by hand.",
        )
    lossy = [path for path in files.all_images if looks_like_label(path)]
    if not files.labels and lossy:
        return DataError(
            f"{folder} has no labels but JPEG files, such as {lossy[0]}.",
            "JPEG changes pixels, and with them classes: export the labels as PNG.",
        )
    images, labels = _examples(files.all_images, "images"), _examples(files.labels, "labels")
    return DataError(
        f"{folder} has no pairs of images and labels: {images}; {labels}.",
        "Label images are recognized by a folder or file name such as labels, masks, gt or "
        "'001_gt.png', files of labelme, COCO and YOLO by their contents; both are matched to "
        "images by their names. Unpack archives, rename the files, or write the card by hand.",
    )


def _examples(paths: Sequence[PurePosixPath], kind: str) -> str:
    examples = ", ".join(map(str, paths[:_EXAMPLES]))
    return f"{len(paths)} possible {kind}" + (f", e.g. {examples}" if paths else "")
