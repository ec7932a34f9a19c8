"""The files below some folders, found by the ends of their paths."""

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath

from pinmem_core.acquisition.audit import MARKER
from pinmem_core.paths import as_text, files_below


class RawFiles:
    """All files below some folders, by their paths as text; the case of letters does not count.

    The name of a folder that an archive was unpacked into is a part of the paths: it may stand for
    the folder that the archive lacks.

    Args:
        folders: Where to look, at any depth.
        split_backslashes: Whether backslashes in names separate folders, as in what some tools
            unpack of an archive that was made on Windows.

    Attributes:
        texts: The path of each file below its folder, as `as_text` has it.
        hold_backslashes: Whether names hold backslashes.
    """

    def __init__(self, folders: Iterable[Path], *, split_backslashes: bool = False) -> None:
        self.texts: list[str] = []
        self._places: list[tuple[Path, str]] = []
        for folder in sorted(folders):
            found = sorted((as_text(path), path) for path in files_below(folder))
            prefix = f"{as_text(folder.name)}/" if (folder / MARKER).is_file() else ""
            self.texts += (prefix + text for text, _ in found)
            self._places += ((folder, path) for _, path in found)
        self.hold_backslashes = any("\\" in text for text in self.texts)
        if split_backslashes:
            self.texts = [text.replace("\\", "/") for text in self.texts]
        self._tails: dict[int, dict[str, list[int]]] = {}
        self._sorted_tails: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def path(self, number: int) -> Path:
        """Return where the file with this number in `texts` lies."""
        folder, path = self._places[number]
        return folder / path

    def ending_with(self, tail: str) -> list[int]:
        """Return the numbers of the files whose paths end with the parts of `tail`."""
        return self._by_tail(tail.count("/") + 1).get(tail.casefold(), [])

    def beginning_with(self, beginning: str, parts: int) -> Iterator[int]:
        """Yield the files the last `parts` parts of whose paths begin with `beginning`.

        After it no letter or digit follows: "a/1" is not the beginning of "a/10.png".
        """
        start = beginning.casefold()
        if parts not in self._sorted_tails:
            self._sorted_tails[parts] = sorted(self._by_tail(parts))
        tails = self._sorted_tails[parts]
        first = bisect_left(tails, start)
        for tail in takewhile(lambda tail: tail.startswith(start), islice(tails, first, None)):
            if not re.match("[^\\W_]", tail[len(start) :]):
                yield from self._by_tail(parts)[tail]

    def suffixes(self) -> dict[str, int]:
        """Return how many files have each suffix, the most frequent first."""
        counts = Counter(PurePosixPath(text).suffix for text in self.texts)
        return dict(counts.most_common())

    def _by_tail(self, length: int) -> dict[str, list[int]]:
        if length not in self._tails:
            index = defaultdict(list)
            for number, text in enumerate(self.texts):
                index["/".join(text.split("/")[-length:]).casefold()].append(number)
            self._tails[length] = index
        return self._tails[length]
