"""The schema of a dataset card: facts about a dataset, as data.

The cards that pinmem ships and those that users write for their own data are the same YAML.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_validator

from pinmem_core.datasets.label_maps import STANDARD_MAPS, LabelMapSpec, build_label_map
from pinmem_core.labels import LabelMap

Drawing = Callable[[Path, Callable[[int, int], None]], None]
"""Writes a generated dataset below a folder, calling back with (done, total)."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""One text or several; YAML may leave the brackets of a single one away."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Archive(_Strict):
    """A file in which a dataset is handed out."""

    file: str = Field(pattern=r"^[^/\\]+$")
    """Its name; also what is awaited where a person has to fetch it."""
    url: Texts = ()
    """Where to fetch it: addresses of the same bytes, tried in turn."""
    bytes: int | None = Field(None, gt=0)
    """Exact size, where it is published."""
    about: ByteSize | None = None
    """Rounded size, e.g. "5.71 GB", where only that is published."""
    md5: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    part: str | None = None
    """Archives with the same part belong together and are of use without the others."""
    aliases: Texts = ()
    """Other names under which the file circulates."""

    @property
    def expected_bytes(self) -> int | None:
        """The exact size, else the rounded one, else None."""
        return self.bytes or self.about


class Layout(_Strict):
    """One way in which a dataset lies on disk.

    Paths hold fields in braces and fit at any depth below the folders that the user names. `image`
    is matched against the files that exist: `{field}` stands for any characters but a slash,
    `{field:regex}` for what the expression (without braces) says. The other texts are then filled
    with the fields.
    """

    name: str
    """How the layout is called in reports."""
    image: str
    """Pattern of the image files, e.g. "images/{drive}_{frame}.jpg"."""
    label: str
    """Path of an image's label, e.g. "labels/{drive}_{frame}.png"."""
    encoding: str = "ids"
    """How a label file is read; `pinmem_core.preparation.encodings` holds the ways."""
    label_maps: Texts = Field(min_length=1)
    """The label maps that fit these labels, the default one first."""
    largest_id: tuple[int, int] | None = None
    """Where versions share a layout: the range in which the largest raw id of the data lies."""
    id: str
    """Name of a sample, unique in the dataset."""
    domain: str | None = None
    """Domain of a sample; None for a dataset that is one domain, called like itself."""
    split: str | None = None
    """Split of a sample; None where the layout tells none."""


class KnownDefect(_Strict):
    """Something wrong with what was published."""

    reason: str
    samples: tuple[str, ...] = ()
    """Ids of the samples concerned; empty where nobody published them."""
    exclude: bool = False
    """Whether `prepare` leaves these samples out."""


class DatasetCard(_Strict):
    """All that pinmem knows about one dataset."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """What users type."""
    title: str
    """What the dataset calls itself."""
    version: int = 1
    """Raised whenever the card changes what `prepare` produces."""
    homepage: str = ""
    """Where to read about it."""
    citation: str = ""
    """How to cite it."""
    terms: str = ""
    """Its licence or terms of use, in a sentence or two."""
    terms_url: str = ""
    """Where they stand in full."""
    must_accept: bool = False
    """Whether the terms have to be accepted before pinmem fetches anything."""
    login: str | None = None
    """Address of the site's login form, where archives are given to accounts only."""
    steps: tuple[str, ...] = ()
    """What a person has to do to get the archives, where pinmem cannot fetch them."""
    archives: tuple[Archive, ...] = ()
    """The files that hold the labelled splits."""
    label_maps: dict[str, LabelMapSpec] = {}
    """This dataset's own label maps; the standard ones need no entry."""
    layouts: tuple[Layout, ...] = Field(min_length=1)
    """The layouts found in the wild; the one with most pairs is taken, the first of equals."""
    domains: dict[str, str] = {}
    """All of its domains by name, with a few words on each; empty for a single one."""
    counts: dict[str, int] = {}
    """Published number of labelled samples by split, where a split is published."""
    split_lists: dict[str, tuple[str, ...]] = {}
    """Ids by split, a sample or a range "00001..00010" an entry; they overrule folders. In YAML a
    split may name a text file beside the card that holds an entry a line."""
    known_defects: tuple[KnownDefect, ...] = ()
    notes: tuple[str, ...] = ()
    """What users should know: traps, choices, conventions."""
    evaluate: Literal["val", "all"] = "val"
    """Which samples of a domain that a run has not trained on are scored by default."""
    recipe: str = "paper-resnet50"
    """The training recipe that suits its images, where the user names none."""
    draw: Drawing | None = Field(None, exclude=True)
    """For a dataset that pinmem draws: how."""

    @model_validator(mode="before")
    @classmethod
    def _one_domain(cls, values: Any) -> Any:
        """Give a dataset without domains the one that is called like itself."""
        if not isinstance(values, Mapping) or values.get("domains"):
            return values
        layouts = values.get("layouts")
        if not isinstance(layouts, list | tuple) or any(map(_domain_of, layouts)):
            return values
        return {**values, "domains": {str(values.get("name")): str(values.get("title"))}}

    @model_validator(mode="after")
    def _maps_exist(self) -> "DatasetCard":
        for layout in self.layouts:
            for name in layout.label_maps:
                self.label_map(name)
        return self

    @property
    def label_map_names(self) -> tuple[str, ...]:
        """The label maps to choose from; each layout's first is its default."""
        return tuple(dict.fromkeys(name for lay in self.layouts for name in lay.label_maps))

    def label_map(self, name: str) -> LabelMap:
        """Return the label map `name`, the card's own or a standard one.

        Raises:
            ConfigError: There is none.
            ValueError: It is ill defined.
        """
        return build_label_map(name, {**STANDARD_MAPS, **self.label_maps})


def _domain_of(layout: Any) -> Any:
    if isinstance(layout, Mapping):
        return layout.get("domain")
    return getattr(layout, "domain", None)
