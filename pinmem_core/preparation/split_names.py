"""What splits are called in the names of folders and lists."""

import re

_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_ABBREVIATIONS = {"trn", "dev", "tst"}
"""Names that are parts of other words, too, such as "device"."""
_WORDS = "|".join(
    rf"(?<![a-z]){name}(?![a-z])" if name in _ABBREVIATIONS else name
    for name in sorted(_NAMES, key=len, reverse=True)
)
SPLIT = re.compile(f"(.*?)({_WORDS})(.*)", re.IGNORECASE | re.DOTALL)
"""A name that tells a split: what is before it, the split, what is after it."""
NUMBER = re.compile(r"\d+[_\-. ]+")
"""What some put before the names of folders to have them in order."""


def split_called(name: str) -> str:
    """Return "train", "val" or "test" for what else it may be called; other names as they are."""
    return _NAMES.get(NUMBER.sub("", name.lower(), count=1), name)
