"""`pinmem data download` and `extract`: from a dataset's site to raw files."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pinmem_cli.options import Json, Quiet, examples, names, paths, quoted
from pinmem_cli.output import Output, size, table
from pinmem_cli.streams import printable
from pinmem_core.addresses import masked
from pinmem_core.errors import ConfigError

if TYPE_CHECKING:
    from pinmem_core.data.access import Credentials
    from pinmem_core.data.card import DatasetCard

DOWNLOAD_EXAMPLES = examples(
    "pinmem data download gtav --parts 1,2 --dry-run",
    "pinmem data download cityscapes --accept-terms",
)
EXTRACT_EXAMPLES = examples(
    "pinmem data extract gtav", "pinmem data extract mapillary --from ~/Downloads"
)

FETCHING = "Fetching"
AcceptTerms = Annotated[
    bool,
    typer.Option(
        "--accept-terms",
        help="Accept the dataset's terms without being asked.",
        rich_help_panel=FETCHING,
    ),
]
Parts = Annotated[
    list[str] | None,
    typer.Option(
        "--parts",
        help="Parts to fetch, e.g. 1,3 (GTAV has ten); by comma, or repeated.",
        rich_help_panel=FETCHING,
    ),
]
CardFile = Annotated[Path | None, typer.Option("--card", help="The YAML card of your own dataset.")]
Sources = Annotated[
    list[Path] | None,
    typer.Option("--from", help="Folder or archive where you have it; by comma, or repeated."),
]


def card_of(name: str, file: Path | None) -> "DatasetCard":
    """Return the card that a command is about: the user's file, or a known dataset's."""
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
    """Have a dataset's terms accepted, once: by option, or by a question on a terminal."""
    from pinmem_core.data import access as terms

    if not card.must_accept or terms.accepted(card):
        return
    output.note(" ".join(f"Terms of {card.title}: {card.terms} {card.terms_url}".split()))
    if accept or (sys.stdin.isatty() and typer.confirm("Do you accept them?", err=True)):
        terms.accept(card)
    terms.require_accepted(card)


def credentials_for(card: "DatasetCard") -> "Credentials | None":
    """Return what a dataset's login needs: found on this machine, or asked for on a terminal."""
    from pinmem_core.data.access import Credentials, find_credentials

    if not card.login:
        return None
    found = find_credentials(card.login)
    if found or not sys.stdin.isatty():
        return found
    site = masked(card.login)
    username = typer.prompt(printable(f"User name at {site}"), err=True)
    return Credentials(username, typer.prompt("Password", hide_input=True, err=True))


def download(
    name: Annotated[str, typer.Argument(help="The dataset; 'pinmem data list' shows all.")],
    parts: Parts = None,
    folder: Annotated[
        Path | None, typer.Option("--to", help="Folder for the archives (default: PINMEM_HOME).")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=16, help="Files fetched at once.")] = 4,
    accept_terms: AcceptTerms = False,
    card_file: CardFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes, and fetch nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a dataset's archives: resumed where they were cut, checked before they count."""
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
            jobs=jobs,
            credentials=credentials,
            on_event=listener,
        )
    files = [{"file": str(path), "bytes": path.stat().st_size} for path in paths]
    output.result({"dataset": name, "files": files}, *map(str, paths))
    chosen = [word for part in names(parts) for word in ("--parts", part)]
    source = ["--from", folder] if folder else chosen
    output.next_step(f"pinmem data prepare {quoted(name, *_card(card_file), *source)}")


def list_wanted(card: "DatasetCard", parts: list[str], folder: Path | None, output: Output) -> None:
    """Show which files a download would fetch."""
    from pinmem_core.data.download import wanted

    plan = wanted(card, folder, parts)
    rows = table("file", "size", "here", "from", text=["here", "from"])
    for item in plan:
        url = masked(item.archive.url[0]) if item.archive.url else "a person"
        here = item.state if item.state != "partial" else size(item.done)
        rows.add_row(item.archive.file, size(item.archive.expected_bytes), here, url)
    missing = [item for item in plan if item.state != "present"]
    left = sum((item.archive.expected_bytes or 0) - item.done for item in missing)
    entries = [
        {
            "file": item.archive.file,
            "path": str(item.path),
            "url": list(map(masked, item.archive.url)),
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


def extract(
    name: Annotated[str, typer.Argument(help="The dataset; 'pinmem data list' shows all.")],
    sources: Sources = None,
    card_file: CardFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Unpack archives safely; 'prepare' does this by itself."""
    from pinmem_core.data.locate import obtain
    from pinmem_core.home import archives_root

    card = card_of(name, card_file)
    output = Output(as_json=json, quiet=quiet)
    with output.listening() as listener:
        folders = obtain(card, paths(sources) or [archives_root(name)], on_event=listener)
    output.result({"dataset": name, "folders": [str(f) for f in folders]}, *map(str, folders))
    source = [word for folder in folders for word in ("--from", folder)]
    output.next_step(f"pinmem data prepare {quoted(name, *_card(card_file), *source)}")


def _card(file: Path | None) -> list[object]:
    return ["--card", file] if file else []
