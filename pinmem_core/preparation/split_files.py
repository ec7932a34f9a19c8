"""Split lists that come with data, such as VOC's `ImageSets`."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pinmem_core.preparation.patterns import Patterns

_NAME = re.compile(r"(train|val|test)(?:ing|id|idation)?", re.IGNORECASE)
_LARGEST_FILE = 64 << 20
_LABELLED = re.compile("seg|sem", re.IGNORECASE)


def split_lists(places: Mapping[str, Path], patterns: Patterns) -> tuple[str, dict[str, list[str]]]:
    """Return the folder of the lists that divide the samples, and the ids in each list.

    A list is a text file called like a split, with a sample a line: its name, or the path of its
    image. It counts if at least half of its lines name a sample, and if there are several in one
    folder. Of several such folders, that with most samples is taken.

    Args:
        places: Where the files of the data lie, by their paths as text.
        patterns: The samples.
    """
    ids = _ids(patterns)
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for text in sorted(places):
        path = PurePosixPath(text)
        match = _NAME.fullmatch(path.stem)
        if (
            match
            and path.suffix.lower() in (".txt", ".lst")
            and (listed := _read(places[text], ids))
        ):
            found[str(path.parent)][match[1].lower()] = listed
    several = {folder: lists for folder, lists in found.items() if len(lists) > 1}
    if not several:
        return "", {}
    return max(
        several.items(),
        key=lambda item: (sum(map(len, item[1].values())), bool(_LABELLED.search(item[0]))),
    )


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
    for text in (entry, entry.split()[0]):
        path = PurePosixPath(text.replace("\\", "/"))
        for name in (str(path).lstrip("/"), path.name, path.stem):
            if found := ids.get(name):
                return found
    return None
