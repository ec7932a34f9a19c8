"""The schema of a dataset card."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from pinmem_core.data.label_maps import STANDARD_MAPS, LabelMapSpec, build_label_map
from pinmem_core.label_space import LabelMap

Drawing = Callable[[Path, Callable[[int, int], None]], None]
"""Writes a generated dataset below a folder, calling back with (done, total)."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""One text or several; YAML may leave the brackets of a single one away."""


_NO_REPEAT = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.DOTALL)
"""What stands for one character in an expression: an escape, or a set in brackets."""
_MOST_REPEATS = 2

FIELD = re.compile(r"\{\{|\}\}|\{(\w+)(?::([^{}]+))?\}")
"""In a layout's image pattern, a doubled brace, which stands for itself, or a field and the
expression that its value fits."""

MOST_SAMPLES = 2_000_000
"""Samples that the ranges of a card may stand for."""
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LONGEST_INDEX = 12
_LARGEST_FILE = 1 << 60

_FILE_NAME = re.compile(r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]{0,199}")


def _as_file_name(name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{name[:200]!r} cannot be the name of a file")
    return name


FileName = Annotated[str, AfterValidator(_as_file_name)]
"""The name of a file: no path, and not hidden."""


def _bounded_ranges(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse ranges that are empty, or that would fill the memory once they are expanded."""
    total = 0
    for first, last in (match.groups() for match in map(_RANGE.fullmatch, entries) if match):
        shown = f"'{first[:20]}..{last[:20]}'"
        if max(len(first), len(last)) > _LONGEST_INDEX:
            raise ValueError(f"the numbers of the range {shown} are too long")
        if int(last) < int(first):
            raise ValueError(f"the range {shown} ends before it begins")
        total += int(last) - int(first) + 1
        if total > MOST_SAMPLES:
            raise ValueError(f"the range {shown} and those before hold too many samples")
    return entries


SampleIds = Annotated[tuple[str, ...], AfterValidator(_bounded_ranges)]
"""Ids of samples, a sample or a range "00001..00010" an entry."""


def fields_of(image: str) -> dict[str, str]:
    """Return the fields of an image pattern, and the expression of each, "" where it has none."""
    fields: dict[str, str] = {}
    for match in FIELD.finditer(image):
        if match[1]:
            fields.setdefault(match[1], match[2] or "")
    return fields


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Archive(_Strict):
    """A file in which a dataset is handed out."""

    file: FileName
    """Its name; also what is awaited where a person has to fetch it."""
    url: Texts = ()
    """Where to fetch it: addresses of the same bytes, tried in turn."""
    bytes: int | None = Field(None, gt=0, le=_LARGEST_FILE)
    """Exact size, where it is published."""
    about: ByteSize | None = None
    """Rounded size, e.g. "5.71 GB", where only that is published."""
    md5: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    part: str | None = None
    """Archives with the same part belong together and are of use without the others."""
    aliases: Annotated[tuple[FileName, ...], BeforeValidator(_as_tuple)] = ()
    """Other names under which the file circulates."""

    @field_validator("about")
    @classmethod
    def _is_size_of_a_file(cls, value: ByteSize | None) -> ByteSize | None:
        if value is not None and not 0 < value <= _LARGEST_FILE:
            raise ValueError("this is no size of a file")
        return value

    @property
    def expected_bytes(self) -> int | None:
        """The exact size, else the rounded one, else None."""
        return self.bytes or self.about


class Layout(_Strict):
    """One way in which a dataset lies on disk.

    Paths hold fields in braces and fit at any depth below the folders that the user names. `image`
    is matched against the files that exist: `{field}` stands for any characters but a slash,
    `{field:regex}` for what the expression (without braces) says, and `{{` and `}}` for braces. The
    other texts are then filled with the fields. The case of letters does not matter.
    """

    name: str
    """How the layout is called in reports."""
    image: str = Field(max_length=20_000)
    """Pattern of the image files, e.g. "images/{drive}_{frame}.jpg"."""
    label: str = Field(max_length=4096)
    """Path of an image's label, e.g. "labels/{drive}_{frame}.png"."""
    encoding: str = "ids"
    """How a label file is read; `pinmem_core.data.encodings` holds the ways."""
    label_maps: Texts = Field(min_length=1)
    """The label maps that fit these labels, the default one first."""
    largest_id: tuple[int, int] | None = None
    """Where versions share a layout: the range in which the largest raw id of the data lies."""
    id: str = Field(max_length=1000)
    """Name of a sample, unique in the dataset; files are called like it."""
    domain: str | None = Field(None, max_length=1000)
    """Domain of a sample; None for a dataset that is one domain, called like itself."""
    split: str | None = Field(None, max_length=1000)
    """Split of a sample; None where the layout tells none."""

    @field_validator("image")
    @classmethod
    def _expressions_are_sound(cls, image: str) -> str:
        for name, expression in fields_of(image).items():
            if not name.isidentifier():
                raise ValueError(f"'{name}' cannot be the name of a field")
            _refuse_endless(name, expression)
            try:
                re.compile(expression)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(
                    f"the expression of the field '{name}' is wrong: {error}"
                ) from None
        return image

    @model_validator(mode="after")
    def _fields_are_known(self) -> Self:
        known = fields_of(self.image)
        for key in ("label", "id", "domain", "split"):
            _check_template(key, getattr(self, key) or "", known)
        if re.search(r"[/\\]", self.id):
            raise ValueError(f"id: '{self.id}' is a path, and has to be a name")
        return self


class KnownDefect(_Strict):
    """Something wrong with what was published."""

    reason: str
    samples: SampleIds = ()
    """Ids of the samples concerned; empty where nobody published them."""
    exclude: bool = False
    """Whether `prepare` leaves these samples out."""


class DatasetCard(_Strict):
    """All that pinmem knows about one dataset."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)
    """What users type."""
    title: str
    """What the dataset calls itself."""
    version: int = Field(1, ge=0, le=1_000_000)
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
    other_archives: Annotated[tuple[FileName, ...], BeforeValidator(_as_tuple)] = ()
    """Names of archives in which the same files are packed otherwise."""
    label_maps: dict[str, LabelMapSpec] = Field({}, max_length=16)
    """This dataset's own label maps; the standard ones need no entry."""
    layouts: tuple[Layout, ...] = Field(min_length=1, max_length=64)
    """The layouts found in the wild; the one with most pairs is taken, the first of equals."""
    domains: dict[str, str] = {}
    """All of its domains by name, with a few words on each; empty for a single one."""
    counts: dict[str, Annotated[int, Field(ge=0, le=1_000_000_000)]] = {}
    """Published number of labelled samples by split, where a split is published."""
    split_lists: dict[str, SampleIds] = Field({}, max_length=16)
    """Ids by split, a sample or a range "00001..00010" an entry; they overrule folders. In YAML a
    split may name a text file beside the card that holds an entry a line."""
    known_defects: tuple[KnownDefect, ...] = ()
    notes: tuple[str, ...] = ()
    """What users should know: traps, choices, conventions."""
    evaluate: Literal["val", "all"] | None = None
    """Which samples of a domain that a run has not trained on are scored by default; None: the
    validation split where the data come with one, else all."""
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
        for name in self.label_map_names:
            self.label_map(name)
        return self

    @model_validator(mode="after")
    def _archives_differ(self) -> "DatasetCard":
        names = Counter(archive.file.casefold() for archive in self.archives)
        repeated = [name for name, times in names.items() if times > 1]
        if repeated:
            raise ValueError(f"two archives are called '{repeated[0]}'")
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


def _refuse_endless(name: str, expression: str) -> None:
    """Raise a ValueError for an expression that may take hours over a single name."""
    bare = _NO_REPEAT.sub("x", expression)
    if re.search(r"\(\?(#|[a-zA-Z-]*x)", bare):
        raise ValueError(f"the expression of the field '{name}' may not hold comments")
    if re.search(r"\)[*+]", bare):
        raise ValueError(f"the expression of the field '{name}' repeats a group; repeat characters")
    if len(re.findall(r"[*+]", bare)) > _MOST_REPEATS:
        raise ValueError(
            f"the expression of the field '{name}' repeats more than {_MOST_REPEATS} times: "
            "make fields of its parts"
        )


def _check_template(key: str, template: str, known: Iterable[str]) -> None:
    """Raise a ValueError unless a template is made of text and of known fields alone."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{key}: '{template}' is wrong: {error}") from None
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if form or conversion or not name.isidentifier():
            raise ValueError(f"{key}: a field is only its name in braces, not '{{{name}...}}'")
        if name not in known:
            raise ValueError(f"{key}: the image's pattern has no field '{name}'")


def _domain_of(layout: Any) -> Any:
    if isinstance(layout, Mapping):
        return layout.get("domain")
    return getattr(layout, "domain", None)
