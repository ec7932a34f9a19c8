"""`pinmem data download`, `extract` and `prepare`: from a dataset's site to a prepared dataset."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pinmem_cli.options import (
    Dataset,
    Json,
    Quiet,
    given_options,
    names,
    option,
    paths,
    refuse_others,
    shell_join,
    without,
)
from pinmem_cli.output import Output, counted, fields, size, table
from pinmem_cli.streams import printable
from pinmem_core.addresses import redact_url
from pinmem_core.errors import ConfigError

if TYPE_CHECKING:
    from pinmem_core.data.access import Credentials
    from pinmem_core.data.card import DatasetCard
    from pinmem_core.data.convert import Reencoding
    from pinmem_core.data.prepared import PreparedDataset

DOWNLOAD_EXAMPLES = (
    "pinmem data download gtav --parts 1,2 --dry-run",
    "pinmem data download cityscapes --accept-terms",
)
EXTRACT_EXAMPLES = (
    "pinmem data extract gtav",
    "pinmem data extract mapillary --from ~/Downloads",
)

FETCHING = "Download"
AcceptTerms = Annotated[
    bool,
    option("Accept the dataset's terms without being asked.", "--accept-terms", panel=FETCHING),
]
Parts = Annotated[
    list[str] | None,
    option(
        "Parts to fetch, e.g. 1,3 (GTAV has ten).", "--parts", metavar="PART,...", panel=FETCHING
    ),
]
CardFile = Annotated[Path | None, option("YAML card of your own dataset.", "--card")]
Sources = Annotated[
    list[Path] | None, option("Folders or archives that hold it.", "--from", metavar="PATH,...")
]


def card_of(name: str, file: Path | None) -> "DatasetCard":
    """Return the card in the user's file, or of a known dataset."""
    from pinmem_core.data.catalog import get_card, read_card, shipped_cards

    if file is None:
        return get_card(name)
    if name in shipped_cards():
        raise ConfigError(f"'{name}' is a dataset that pinmem knows.", "Give yours another name.")
    card = read_card(file)
    if card.name != name:
        raise ConfigError(f"the card {file} is of '{card.name}', not of '{name}'.")
    return card


def settle_terms(card: "DatasetCard", output: Output, *, accept: bool) -> None:
    """Accept a dataset's terms once: by the option, or by a question on a terminal."""
    from pinmem_core.data import access as terms

    if not card.must_accept or terms.accepted(card):
        return
    output.note(" ".join(f"Terms of {card.title}: {card.terms} {card.terms_url}".split()))
    if accept or (sys.stdin.isatty() and typer.confirm("Do you accept them?", err=True)):
        terms.accept(card)
    terms.require_accepted(card)


def credentials_for(card: "DatasetCard") -> "Credentials | None":
    """Return the credentials of a dataset: saved on this machine, or asked for on a terminal."""
    from pinmem_core.data.access import Credentials, find_credentials

    if not card.login:
        return None
    saved = find_credentials(card.login)
    if saved or not sys.stdin.isatty():
        return saved
    site = redact_url(card.login)
    username = typer.prompt(printable(f"User name at {site}"), err=True)
    return Credentials(username, typer.prompt("Password", hide_input=True, err=True))


def download(
    name: Dataset,
    parts: Parts = None,
    folder: Annotated[
        Path | None, option("Folder for the archives; default: in PINMEM_HOME.", "--output", "-o")
    ] = None,
    workers: Annotated[int, option("Files fetched at once.", min=1, max=16)] = 4,
    accept_terms: AcceptTerms = False,
    card_file: CardFile = None,
    dry_run: Annotated[
        bool, option("List the files and their sizes; fetch nothing.", "--dry-run")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a dataset's archives, resuming partial ones, and check them."""
    from pinmem_core.data.download import download as fetch

    card = card_of(name, card_file)
    output = Output(as_json=json, quiet=quiet)
    if dry_run:
        list_wanted(card, names(parts), folder, output)
        return
    settle_terms(card, output, accept=accept_terms)
    credentials = credentials_for(card)
    with output.listening() as listener:
        paths = fetch(
            card,
            folder,
            parts=names(parts),
            jobs=workers,
            credentials=credentials,
            on_event=listener,
        )
    files = [{"file": str(path), "bytes": path.stat().st_size} for path in paths]
    output.result({"dataset": name, "files": files}, *map(str, paths))
    chosen = ["--parts", ",".join(names(parts))] if parts else []
    output.next_step(_prepare_command(name, card_file, [folder] if folder else [], *chosen))


def _prepare_command(name: str, card: Path | None, sources: Sequence[Path], *more: str) -> str:
    words: list[object] = ["--card", card] if card else []
    words += [word for source in sources for word in ("--from", source)] or more
    return f"pinmem data prepare {shell_join(name, *words)}"


def list_wanted(card: "DatasetCard", parts: list[str], folder: Path | None, output: Output) -> None:
    """List the files that a download would fetch."""
    from pinmem_core.data.download import wanted

    plan = wanted(card, folder, parts)
    rows = table("file", "size", "here", "from", text=["here", "from"])
    for item in plan:
        url = redact_url(item.archive.url[0]) if item.archive.url else "by hand"
        here = item.state if item.state != "partial" else size(item.done)
        rows.add_row(item.archive.file, size(item.archive.expected_bytes), here, url)
    missing = [item for item in plan if item.state != "present"]
    left = sum((item.archive.expected_bytes or 0) - item.done for item in missing)
    entries = [
        {
            "file": item.archive.file,
            "path": str(item.path),
            "url": list(map(redact_url, item.archive.url)),
            "bytes": item.archive.expected_bytes,
            "done": item.done,
            "state": item.state,
        }
        for item in plan
    ]
    output.result({"dataset": card.name, "files": entries, "bytes_left": max(0, left)}, rows)
    output.note(f"{len(missing)} files to fetch, about {size(max(0, left))}")
    for step in card.steps:
        output.note(step)
    output.next_step(without("--dry-run"))


def extract(
    name: Dataset,
    sources: Sources = None,
    card_file: CardFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Unpack archives; 'prepare' does this itself."""
    from pinmem_core.data.locate import locate_raw_files
    from pinmem_core.paths import archives_root

    card = card_of(name, card_file)
    output = Output(as_json=json, quiet=quiet)
    with output.listening() as listener:
        folders = locate_raw_files(card, paths(sources) or [archives_root(name)], on_event=listener)
    output.result({"dataset": name, "folders": [str(f) for f in folders]}, *map(str, folders))
    output.next_step(_prepare_command(name, card_file, folders))


EXAMPLES = (
    "pinmem data prepare camvid --from ~/CamVid",
    "pinmem data prepare gtav --accept-terms --reencode jpeg --height 720",
    "pinmem data prepare gtav --label-map pinmem",
    "pinmem data prepare mycity --card mycity.yaml --from ~/mycity",
)
SHOWN = 3
"""Left-out files that are named for each rule; dataset.json names all."""

_SMALL = "Smaller images"
Reencode = Annotated[
    str | None, option("Re-encode images: jpeg, webp or png.", "--reencode", panel=_SMALL)
]
Quality = Annotated[
    int | None, option("Quality of jpeg and webp; default: 95.", min=1, max=100, panel=_SMALL)
]
Height = Annotated[
    int | None, option("With --reencode: largest height of images and labels.", min=1, panel=_SMALL)
]


def reencoding_of(
    format: str | None, quality: int | None, height: int | None
) -> "Reencoding | None":
    """Return the re-encoding that the options ask for, None for none."""
    from pinmem_core.data.convert import Reencoding

    if format is None:
        for name, value in (("--height", height), ("--quality", quality)):
            if value is not None:
                hint = "Add '--reencode jpeg', for instance."
                raise ConfigError(f"{name} needs --reencode.", hint)
        return None
    if format == "png" and quality is not None:
        raise ConfigError("--quality does nothing with png.", "Leave it out.")
    return Reencoding(format, quality or 95, height)  # type: ignore[arg-type]  # it checks the name


def prepare(
    context: typer.Context,
    name: Dataset,
    sources: Sources = None,
    card_file: CardFile = None,
    label_map: Annotated[
        str | None, option("Mapping from raw labels to classes.", "--label-map")
    ] = None,
    reencode: Reencode = None,
    quality: Quality = None,
    height: Height = None,
    parts: Parts = None,
    accept_terms: AcceptTerms = False,
    remove_archives: Annotated[
        bool,
        option("Delete downloaded archives after unpacking.", "--remove-archives", panel=FETCHING),
    ] = False,
    strict: Annotated[bool, option("Fail if any sample is defective.", "--strict")] = False,
    hash_images: Annotated[
        bool, option("Record the SHA-256 of images, for 'verify --deep'.", "--hash-images")
    ] = False,
    workers: Annotated[
        int | None, option("Samples processed at once; default: one per core.", min=1)
    ] = None,
    dry_run: Annotated[bool, option("Show what would be done; do nothing.", "--dry-run")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a dataset's files and unify its labels; download and unpack what is missing.

    Images stay where they are unless --reencode is given. A second run does only what is missing.
    """
    from pinmem_core.data.locate import locate_raw_files, sources_of_last_time
    from pinmem_core.data.prepare import prepare as prepare_dataset
    from pinmem_core.data.unpack import is_pack

    output = Output(as_json=json, quiet=quiet)
    sources = paths(sources)
    if sources and is_pack(sources[0]):
        _take_pack(context, sources, name, output, dry_run=dry_run)
        return
    card = card_of(name, card_file)
    reencoding = reencoding_of(reencode, quality, height)
    remembered = [] if sources or card.generate else sources_of_last_time(card)
    _refuse_fetching(context, card, sources, remembered)
    if dry_run:
        _show_plan(card, sources or remembered, label_map, names(parts), output)
        return
    credentials = None
    if not sources and not card.generate and not remembered:
        settle_terms(card, output, accept=accept_terms)
        credentials = credentials_for(card)
    with output.listening() as listener:
        folders = locate_raw_files(
            card,
            sources or [],
            parts=names(parts),
            credentials=credentials,
            keep_archives=not remove_archives,
            on_event=listener,
        )
        dataset = prepare_dataset(
            card,
            folders,
            label_map=label_map,
            reencoding=reencoding,
            strict=strict,
            hash_images=hash_images,
            jobs=workers,
            on_event=listener,
        )
    _report(dataset, output)


def _refuse_fetching(
    context: typer.Context,
    card: "DatasetCard",
    sources: Sequence[Path],
    remembered: Sequence[Path],
) -> None:
    """Refuse options of downloading if nothing will be downloaded."""
    options = {"--parts", "--remove-archives"}
    if sources or card.generate:
        what = "--from" if sources else f"the synthetic dataset {card.name}"
        options.add("--accept-terms")  # otherwise harmless
    elif remembered:
        what = f"{remembered[0]}, taken as the last time,"
    else:
        return
    if idle := options & {*given_options(context)}:
        named = ", ".join(sorted(idle))
        raise ConfigError(
            f"{what} fetches nothing: {named} would do nothing.", f"Leave out {named}."
        )


def _take_pack(
    context: typer.Context, sources: Sequence[Path], name: str, output: Output, *, dry_run: bool
) -> None:
    """Unpack a pack, which holds a whole dataset."""
    from pinmem_core.data.unpack import packed_card, unpack

    refuse_others(context, "a pack", "is taken as it is", ("--from", "--dry-run"))
    if len(sources) > 1:
        raise ConfigError("a pack is a whole dataset.", "Name it alone with --from.")
    if dry_run:
        card = packed_card(sources[0])
        output.result({"dataset": card.name}, f"{sources[0]}: a pack of {card.name}")
        return
    with output.listening() as listener:
        _report(unpack(sources[0], name, on_event=listener), output)


def _show_plan(
    card: "DatasetCard",
    sources: Sequence[Path],
    label_map: str | None,
    parts: list[str],
    output: Output,
) -> None:
    from pinmem_core.data.locate import plan_raw_files
    from pinmem_core.data.prepare import survey
    from pinmem_core.paths import raw_root

    if not sources and not raw_root(card.name).exists():
        list_wanted(card, parts, None, output)
        return
    folders, packed = plan_raw_files(card, sources or [raw_root(card.name)])
    if packed:
        _list_packed(card, packed, output)
        return
    result = survey(card, folders, label_map)
    rules = Counter(defect.rule for defect in result.defects)
    output.result(
        {
            "dataset": card.name,
            "layout": result.layout,
            "label_map": result.label_map,
            "counts": result.counts,
            "left_out": dict(rules),
        },
        fields(
            [
                ("layout", result.layout),
                ("label map", result.label_map),
                ("pairs", counted(result.counts)),
                ("left out", counted(rules) or "none by their names"),
            ]
        ),
    )
    output.next_step(without("--dry-run"))


def _list_packed(card: "DatasetCard", packed: Sequence[Path], output: Output) -> None:
    """List the archives that would be unpacked; what they hold is unknown before."""
    sizes = {str(path): path.stat().st_size for path in packed}
    rows = table("to unpack", "size")
    for path, length in sizes.items():
        rows.add_row(path, size(length))
    entries = [{"file": path, "bytes": length} for path, length in sizes.items()]
    output.result({"dataset": card.name, "unpack": entries}, rows)
    output.next_step(without("--dry-run"))


def _report(dataset: "PreparedDataset", output: Output) -> None:
    summary = dataset.summary
    excluded: list[dict[str, Any]] = summary["excluded"]
    _show_excluded(excluded, output)
    rules = Counter(defect["rule"] for defect in excluded)
    left_out = f"; left out {len(excluded)}" + (f" ({counted(rules)})" if rules else "")
    output.result(
        {
            "dataset": dataset.name,
            "root": str(dataset.root),
            "manifest": str(dataset.manifest),
            "counts": dataset.counts,
            "excluded": [{key: defect[key] for key in ("file", "reason")} for defect in excluded],
            "digest": summary["digest"],
            "label_space": dataset.label_space.name,
        },
        f"{summary['title']}: {summary['layout']}",
        fields(
            [
                ("samples", counted(dataset.counts) + left_out),
                ("domains", counted(dataset.domains)),
                ("label map", summary["label_map"]["name"]),
                ("classes", f"{len(dataset.label_space)} ({dataset.label_space.name})"),
                ("folder", str(dataset.root)),
                ("digest", summary["digest"]),
            ]
        ),
    )
    output.next_step(f"pinmem data preview {dataset.name}")


def _show_excluded(excluded: Sequence[Mapping[str, str]], output: Output) -> None:
    """Name the first files that each rule left out."""
    for rule in dict.fromkeys(defect["rule"] for defect in excluded):
        matching = [defect for defect in excluded if defect["rule"] == rule]
        for defect in matching[:SHOWN]:
            output.note(f"left out ({rule}): {defect['file']}: {defect['reason']}")
        if len(matching) > SHOWN:
            output.note(f"left out ({rule}): {len(matching) - SHOWN} more, see dataset.json")
