"""`pinmem data list` and `info`: what there is, and in what state."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pinmem_cli.options import Json, Quiet, examples
from pinmem_cli.output import Output, counted, fields, size, table

if TYPE_CHECKING:
    from pinmem_core.data.card import DatasetCard
    from pinmem_core.data.prepared import State

TEXT = ("state", "how to get it", "samples")
INFO_EXAMPLES = examples("pinmem data info gtav", "pinmem data info mapillary --json")


def list_datasets(json: Json = False, quiet: Quiet = False) -> None:
    """List the datasets that pinmem knows, and their state on this machine."""
    from pinmem_core.data.catalog import cards, damaged_cards
    from pinmem_core.data.prepared import state_of

    known, damaged = cards(), damaged_cards()
    states = {name: state_of(card) for name, card in known.items()}
    rows = table("dataset", "state", "disk", "how to get it", "samples", text=TEXT)
    for name, state in states.items():
        total = state.bytes_archives + state.bytes_raw + state.bytes_prepared
        rows.add_row(
            name,
            state.state,
            size(total) if total else "",
            _way(known[name]),
            counted(state.counts),
        )
    output = Output(as_json=json, quiet=quiet)
    entries = [_entry(known[name], state) for name, state in states.items()]
    problems = [{"name": name, "problem": error.message} for name, error in damaged.items()]
    output.result({"datasets": entries, "damaged_cards": problems}, rows)
    for name, error in damaged.items():
        output.note(f"warning: '{name}' is left out: {error.message}")
    output.next_step(f"pinmem data info {next(iter(known))}")


def info(
    name: Annotated[str, typer.Argument(help="The dataset; 'pinmem data list' shows all.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show all that is known about a dataset: terms, files, labels, splits, traps, its state."""
    from pinmem_core.data.catalog import get_card
    from pinmem_core.data.prepared import state_of

    card = get_card(name)
    state = state_of(card)
    output = Output(as_json=json, quiet=quiet)
    output.result(_entry(card, state), card.title, fields(_facts(card, state)))
    output.next_step(f"pinmem data prepare {name}")


def _way(card: "DatasetCard") -> str:
    if card.draw:
        return "drawn by pinmem"
    if card.login:
        return "download, with an account"
    if any(archive.url for archive in card.archives):
        return "download"
    return "by hand, then --from" if card.archives else "--from"


def _entry(card: "DatasetCard", state: "State") -> dict[str, object]:
    described = card.model_dump(mode="json", exclude={"label_maps", "layouts", "split_lists"})
    known = {
        "label_maps": card.label_map_names,
        "layouts": [lay.name for lay in card.layouts],
        "published": card.counts,
    }
    return {**described, **known, **asdict(state), "prepared": state.digest is not None}


def _facts(card: "DatasetCard", state: "State") -> list[tuple[str, str | Sequence[str]]]:
    disk = (
        f"archives {size(state.bytes_archives)}, raw {size(state.bytes_raw)}, "
        f"prepared {size(state.bytes_prepared)}"
    )
    facts: list[tuple[str, str | Sequence[str]]] = [
        ("state", state.state + (f": {state.problem}" if state.problem else "")),
        ("samples", counted(state.counts)),
        ("left out", str(state.excluded) if state.excluded else ""),
        ("disk", disk),
        ("digest", state.digest or ""),
        ("homepage", card.homepage),
        ("terms", " ".join(filter(None, [card.terms, card.terms_url]))),
        ("cite", card.citation),
        ("published", counted(card.counts)),
        ("domains", ", ".join(card.domains)),
        ("label maps", ", ".join(card.label_map_names)),
        ("layouts", [f"{lay.name}: {lay.image} + {lay.label}" for lay in card.layouts]),
        ("archives", [f"{a.file}  {size(a.expected_bytes)}" for a in card.archives]),
        ("to get it", card.steps or _way(card)),
        ("defects", [defect.reason for defect in card.known_defects]),
        ("notes", card.notes),
    ]
    return [(key, text) for key, text in facts if text]
