"""Split lists that come with data, such as VOC's `ImageSets`."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pinmem_core.preparation.patterns import Patterns
from pinmem_core.preparation.split_names import SPLIT, split_called

_SUFFIXES = (".txt", ".lst", ".csv")
_AFTER_NAME = re.compile(r"[\s,;]")
_LARGEST_FILE = 64 << 20
_LABELLED = re.compile("seg|sem", re.IGNORECASE)


def split_lists(places: Mapping[str, Path], patterns: Patterns) -> tuple[str, dict[str, list[str]]]:
    """Return the folder of the lists that divide the samples, and the ids in each list.

    A list is a text file called like a split ("val", "val_list", "city_val"), with a sample a line:
    its name, or the path of its image. It counts if at least half of its lines name a sample, and
    if there are several in one folder that are called alike. Of several such groups of lists, that
    with most samples is taken.

    Args:
        places: Where the files of the data lie, by their paths as text.
        patterns: The samples.
    """
    ids = _ids(patterns)
    found: dict[tuple[str, str, str], dict[str, list[str]]] = defaultdict(dict)
    for text in sorted(places):
        path = PurePosixPath(text)
        named = _named(path)
        if named and (listed := _read(places[text], ids)):
            before, split, after = named
            found[str(path.parent), before, after][split] = listed
    several = {group: lists for group, lists in found.items() if len(lists) > 1}
    if not several:
        return "", {}
    (folder, *_), lists = max(
        several.items(),
        key=lambda item: (sum(map(len, item[1].values())), bool(_LABELLED.search(item[0][0]))),
    )
    return folder, lists


def _named(path: PurePosixPath) -> tuple[str, str, str] | None:
    """Return the split that a list is called by, between what surrounds it; None for no list."""
    match = SPLIT.fullmatch(path.stem.lower())
    if match is None or path.suffix.lower() not in _SUFFIXES:
        return None
    before, split, after = match.groups()
    if before[-1:].isalpha() or after[:1].isalpha():
        return None  # "trainval"
    return before, split_called(split), after


def _ids(patterns: Patterns) -> dict[str, str | None]:
    """Return the sample that each way to write its name stands for, None for several samples."""
    ids: dict[str, str | None] = {}
    for pair, sample_id in zip(patterns.pairs, patterns.ids, strict=True):
        image = pair.image
        for name in {pair.shared, image.stem, image.name, str(image), sample_id}:
            ids[name] = sample_id if ids.get(name, sample_id) == sample_id else None
    return ids


def _read(path: Path, ids: Mapping[str, str | None]) -> list[str]:
    """Return the ids of the samples that a list names; none where most lines name no sample."""
    if path.stat().st_size > _LARGEST_FILE:
        return []
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    entries = [line.strip() for line in lines if line.strip()]
    listed = [sample for entry in entries if (sample := _sample(entry, ids))]
    return listed if 2 * len(listed) >= len(entries) else []


def _sample(entry: str, ids: Mapping[str, str | None]) -> str | None:
    """Return the id of the sample that a line names: by all of it, or by its first word."""
    for text in (entry, _AFTER_NAME.split(entry)[0].strip("\"'")):
        path = PurePosixPath(text.replace("\\", "/"))
        for name in (str(path).lstrip("/"), path.name, path.stem):
            if found := ids.get(name):
                return found
    return None
