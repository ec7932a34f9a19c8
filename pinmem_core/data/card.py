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

from pinmem_core.data.label_maps import (
    LabelMap,
    LabelMapSpec,
    SpaceRef,
    build_label_map,
    resolve_space,
    standard_maps,
)
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.paths import as_domain

Generator = Callable[[Path, Callable[[int, int], None]], None]
"""Writes a synthetic dataset into a folder and reports (done, total) to a callback."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""One or more texts; in YAML, a single one needs no brackets."""


_NO_REPEAT = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.DOTALL)
"""One character of an expression: an escape, or a set in brackets."""
_MOST_REPEATS = 2

FIELD = re.compile(r"\{\{|\}\}|\{(\w+)(?::([^{}]+))?\}")
"""A doubled brace of a layout's pattern, which stands for itself, or a field and its expression."""

MOST_SAMPLES = 2_000_000
"""Maximum number of samples in the ranges of a list."""
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LONGEST_INDEX = 12
_LARGEST_FILE = 1 << 60

_FILE_NAME = re.compile(r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]{0,199}")


def _as_file_name(name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{name[:200]!r} cannot be the name of a file")
    return name


FileName = Annotated[str, AfterValidator(_as_file_name)]
"""The name of a file: not a path, not hidden."""


def _bounded_ranges(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse ranges that are empty, or too large to be expanded."""
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
"""Ids of samples; an entry is an id or a range "00001..00010"."""


def fields_of(image: str) -> dict[str, str]:
    """Return the expression of each field of an image pattern; "" for a field without one."""
    fields: dict[str, str] = {}
    for match in FIELD.finditer(image):
        if match[1]:
            fields.setdefault(match[1], match[2] or "")
    return fields


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Archive(_Strict):
    """A published file of a dataset."""

    file: FileName
    """Name of the file, also if a person has to download it."""
    url: Texts = ()
    """Addresses of the same bytes, tried in turn."""
    bytes: int | None = Field(None, gt=0, le=_LARGEST_FILE)
    """Exact size, if it is published."""
    about: ByteSize | None = None
    """Rounded size, e.g. "5.71 GB", if only that is published."""
    md5: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    part: str | None = None
    """Archives of the same part belong together and are usable without the others."""
    aliases: Annotated[tuple[FileName, ...], BeforeValidator(_as_tuple)] = ()
    """Other names of the file."""

    @field_validator("about")
    @classmethod
    def _is_size_of_a_file(cls, value: ByteSize | None) -> ByteSize | None:
        if value is not None and not 0 < value <= _LARGEST_FILE:
            raise ValueError("this is no size of a file")
        return value

    @property
    def expected_bytes(self) -> int | None:
        """The exact size, or the rounded one, or None."""
        return self.bytes or self.about


class Layout(_Strict):
    """One layout of a dataset on disk.

    Patterns hold fields in braces and match at any depth below the user's folders. `image` is
    matched with the existing files: `{field}` matches any characters except a slash,
    `{field:regex}` an expression without braces, and `{{` and `}}` stand for braces. The fields
    then fill the other texts. The case of letters does not matter.
    """

    name: str
    """Name of the layout in reports."""
    image: str = Field(max_length=20_000)
    """Pattern of the image files, e.g. "images/{drive}_{frame}.jpg"."""
    label: str = Field(max_length=4096)
    """Path of an image's label, e.g. "labels/{drive}_{frame}.png"."""
    more_labels: Texts = ()
    """Paths of other files that may hold an image's label, such as several JSON files of COCO for
    the images of one folder. The first file that holds the image is taken."""
    encoding: str = "ids"
    """Name of the encoding of label files, from `pinmem_core.data.encodings`."""
    label_maps: Texts = Field(min_length=1)
    """Label maps for these labels, the default one first."""
    largest_id: tuple[int, int] | None = None
    """Range of the largest raw id of the data, if versions share a layout."""
    id: str = Field(max_length=1000)
    """Id of a sample, unique in the dataset; also the name of its files."""
    domain: str | None = Field(None, max_length=1000)
    """Domain of a sample; None for a dataset with one domain of the same name."""
    split: str | None = Field(None, max_length=1000)
    """Split of a sample; None if the layout does not give it."""

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
        for label in self.more_labels:
            _check_template("more_labels", label, known)
        if re.search(r"[/\\]", self.id):
            raise ValueError(f"id: '{self.id}' is a path, and has to be a name")
        return self


class ParquetColumns(_Strict):
    """Columns of parquet files whose rows are samples."""

    image: str
    """Column of the images."""
    label: str
    """Column of the label images."""


class KnownDefect(_Strict):
    """A defect of the published files."""

    reason: str
    samples: SampleIds = ()
    """Ids of the samples concerned; empty if they are not published."""
    exclude: bool = False
    """Whether `prepare` leaves these samples out."""


class DatasetCard(_Strict):
    """Description of a dataset."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)
    """Name on the command line."""
    title: str
    """Title of the dataset."""
    version: int = Field(1, ge=0, le=1_000_000)
    """Raised whenever the card changes what `prepare` produces."""
    homepage: str = ""
    """Address of the homepage."""
    citation: str = ""
    """Citation."""
    terms: str = ""
    """Its licence or terms of use, in a sentence or two."""
    terms_url: str = ""
    """Address of the full terms."""
    must_accept: bool = False
    """Whether the terms have to be accepted before a download."""
    login: str | None = None
    """Address of the login form, if archives need an account."""
    steps: tuple[str, ...] = ()
    """Steps for a person to get the archives, if pinmem cannot download them."""
    archives: tuple[Archive, ...] = ()
    """Files of the labelled splits."""
    other_archives: Annotated[tuple[FileName, ...], BeforeValidator(_as_tuple)] = ()
    """Names of archives that hold the same files in another packing."""
    label_space: SpaceRef = CITYSCAPES.name
    """Label space of the label maps that name none: a known one by name, or the classes of this
    dataset. In YAML, the latter need no name of their own."""
    label_maps: dict[str, LabelMapSpec] = Field({}, max_length=16)
    """Label maps of this dataset, in addition to the standard ones."""
    layouts: tuple[Layout, ...] = Field(min_length=1, max_length=64)
    """Known layouts; the one with the most pairs is taken, the first of equals."""
    domains: dict[Annotated[str, AfterValidator(as_domain)], str] = {}
    """Domains by name, with a short description; empty for a single domain."""
    counts: dict[str, Annotated[int, Field(ge=0, le=1_000_000_000)]] = {}
    """Published number of labelled samples by split, if a split is published."""
    split_lists: dict[str, SampleIds] = Field({}, max_length=16)
    """Ids by split, instead of those of folders. In YAML, a split may name a text file next to
    the card, with an entry on each line."""
    split_groups: dict[str, Texts] = {}
    """Splits that are also known together under another name."""
    parquet: ParquetColumns | None = None
    """Columns of parquet files; `prepare` writes their images and labels as files, `DOMAIN/train/
    images/*` and `DOMAIN/train/labels/*`, which the layouts then match."""
    known_defects: tuple[KnownDefect, ...] = ()
    notes: tuple[str, ...] = ()
    """Known issues, choices and conventions."""
    evaluate: Literal["val", "all"] | None = None
    """Samples of an unseen domain that are scored by default; None for the validation split if the
    data have one, else all."""
    recipe: str | None = None
    """Default training recipe for its images; None for settings that fit the data and device."""
    generate: Generator | None = Field(None, exclude=True)
    """Generator of a synthetic dataset."""

    @model_validator(mode="before")
    @classmethod
    def _one_domain(cls, values: Any) -> Any:
        """Add the only domain of a dataset without domains, with the dataset's name."""
        if not isinstance(values, Mapping) or values.get("domains"):
            return values
        layouts = values.get("layouts")
        if not isinstance(layouts, list | tuple):
            return values
        for lay in layouts:
            if lay.get("domain") if isinstance(lay, Mapping) else getattr(lay, "domain", None):
                return values
        return {**values, "domains": {str(values.get("name")): str(values.get("title"))}}

    @model_validator(mode="before")
    @classmethod
    def _space_has_name(cls, values: Any) -> Any:
        """Give the classes of this dataset its name."""
        space = values.get("label_space") if isinstance(values, Mapping) else None
        if not isinstance(space, Mapping):
            return values
        return {**values, "label_space": {"name": values.get("name"), **space}}

    @model_validator(mode="after")
    def _maps_exist(self) -> "DatasetCard":
        for name in dict.fromkeys([*self.label_map_names, *self.label_maps]):
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
        """Names of the label maps; the first of each layout is its default."""
        return tuple(dict.fromkeys(name for lay in self.layouts for name in lay.label_maps))

    @property
    def space(self) -> LabelSpace:
        """The label space of the label maps that name none."""
        return resolve_space(self.label_space)

    def label_map(self, name: str) -> LabelMap:
        """Return the label map `name`, the card's own or a standard one.

        Raises:
            ConfigError: There is none.
            ValueError: It is ill defined.
        """
        maps = {**standard_maps(self.space), **self.label_maps}
        return build_label_map(name, maps, self.space)


def _refuse_endless(name: str, expression: str) -> None:
    """Raise `ValueError` for an expression that may take hours for a single name."""
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
    """Raise `ValueError` unless a template consists of text and known fields."""
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
