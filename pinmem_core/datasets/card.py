"""The schema of a dataset card: facts about a dataset, as data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pinmem_core.labels import LabelMap


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset lies on disk.

    Paths are relative to the folder that the user names and hold fields in braces. `image` is
    matched against the files that exist: `{field}` stands for any characters but a slash,
    `{field:regex}` for what the expression says. The other texts are then filled with the fields.

    Attributes:
        name: How the layout is called in reports.
        image: Pattern of the image files, e.g. "images/{drive}_{frame}.jpg".
        label: Path of an image's label, e.g. "labels/{drive}_{frame}.png".
        label_map: Translates the label files of this layout.
        id: Name of a sample, unique in the dataset.
        domain: Domain of a sample.
        split: Split of a sample; None where the layout has none: then the last fifth of each
            domain, in the order of the ids, is held out as "val".
    """

    name: str
    image: str
    label: str
    label_map: LabelMap
    id: str
    domain: str
    split: str | None = None


@dataclass(frozen=True)
class DatasetCard:
    """All that pinmem knows about one dataset.

    Attributes:
        name: What users type.
        title: What the dataset calls itself.
        version: Raised whenever the card changes what `prepare` produces.
        homepage: Where to read about it and how to get it.
        citation: How to cite it.
        terms: Its licence or terms of use, in a sentence.
        layouts: The layouts found in the wild; the first that fits is taken.
        domains: All of its domains by name, with a few words on each.
        evaluate: Which samples of a domain that a run has not trained on are scored by default.
        recipe: The training recipe that suits its images, where the user names none.
        draw: For a generated dataset: writes its raw files below a folder, calling back with
            (done, total).
    """

    name: str
    title: str
    version: int
    homepage: str
    citation: str
    terms: str
    layouts: tuple[Layout, ...]
    domains: dict[str, str]
    evaluate: Literal["val", "all"] = "val"
    recipe: str = "paper-resnet50"
    draw: Callable[[Path, Callable[[int, int], None]], None] | None = None
