"""A draft of a card for data that nobody has described yet."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pinmem_core.datasets import shipped_cards
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.paths import as_text, expanded, files_below
from pinmem_core.preparation.card_draft import draft
from pinmem_core.preparation.label_values import label_values
from pinmem_core.preparation.pairing import Candidates, best_pairing, candidates
from pinmem_core.preparation.patterns import patterns_of
from pinmem_core.preparation.split_files import split_lists

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_EXAMPLES = 3


def new_card(folder: Path, name: str) -> str:
    """Return a card as YAML, filled in and commented as far as looking at the data tells.

    Args:
        folder: Where images and labels lie, at any depth.
        name: What to call the dataset.

    Raises:
        ConfigError: The name is not fit for a dataset, or taken.
        DataError: The folder shows no pairs of images and labels, or no label can be read.
    """
    _refuse_name(name)
    folder = expanded(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder.", "Name the folder that holds your data.")
    places = {as_text(path): path for path in files_below(folder)}
    found = candidates(map(PurePosixPath, places))
    pairing = best_pairing(found)
    patterns = patterns_of(pairing, found.depth, found.all_images) if pairing else None
    if patterns is None:
        raise _nothing_pairs(folder, found)
    labels = [folder / places[str(pair.label)] for pair in patterns.pairs]
    lists = (
        ("", {})
        if patterns.split
        else split_lists({text: folder / path for text, path in places.items()}, patterns)
    )
    return draft(name, patterns, label_values(labels), *lists)


def _refuse_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a dataset.",
            "Use lower-case letters, digits, '-' and '_', and begin with a letter or digit: "
            "'--name mycity'.",
        )
    if name in shipped_cards():
        raise ConfigError(f"'{name}' is a dataset that pinmem knows.", "Give yours another name.")


def _nothing_pairs(folder: Path, found: Candidates) -> DataError:
    images = _some(found.all_images, "images")
    if not found.labels and found.lossy:
        return DataError(
            f"{folder} shows no labels but JPEG files, such as {found.lossy[0]}.",
            "JPEG changes pixels, and with them classes: export the labels as PNG.",
        )
    return DataError(
        f"{folder} shows no pairs of images and labels: {images}; {_some(found.labels, 'labels')}.",
        "A label is told by a folder or a name like labels, masks, gt or '001_gt.png', and is its "
        "image's by what else is in their names. Rename the files, or write the card by hand.",
    )


def _some(paths: Sequence[PurePosixPath], kind: str) -> str:
    examples = ", ".join(map(str, paths[:_EXAMPLES]))
    return f"{len(paths)} possible {kind}" + (f", e.g. {examples}" if paths else "")
