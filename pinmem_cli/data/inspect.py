"""`pinmem data list`, `info`, `verify`, `stats` and `preview`: inspect datasets."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pinmem_cli.names import datasets
from pinmem_cli.options import Dataset, Json, Prepared, Quiet, argument, option, shell_join
from pinmem_cli.output import VERIFICATION_FAILED, Output, counted, fields, size, table

if TYPE_CHECKING:
    from pinmem_core.data.card import DatasetCard
    from pinmem_core.data.prepared import State

TEXT = ("state", "how to get it", "samples")
INFO_EXAMPLES = (
    "pinmem data info gtav",
    "pinmem data info mapillary --json",
)


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
    name: Dataset,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a dataset's terms, files, labels, splits, known issues and state."""
    from pinmem_core.data.catalog import get_card
    from pinmem_core.data.prepared import state_of

    card = get_card(name)
    state = state_of(card)
    output = Output(as_json=json, quiet=quiet)
    output.result(_entry(card, state), card.title, fields(_rows(card, state)))
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


def _rows(card: "DatasetCard", state: "State") -> list[tuple[str, str | Sequence[str]]]:
    disk = (
        f"archives {size(state.bytes_archives)}, raw {size(state.bytes_raw)}, "
        f"prepared {size(state.bytes_prepared)}"
    )
    rows: list[tuple[str, str | Sequence[str]]] = [
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
    return [(key, text) for key, text in rows if text]


VERIFY_EXAMPLES = (
    "pinmem data verify gtav",
    "pinmem data verify gtav --headers-only",
)
STATS_EXAMPLES = ("pinmem data stats synthia --plot classes.png",)
PREVIEW_EXAMPLES = (
    "pinmem data preview camvid:0001TP -o dusk.png",
    "pinmem data preview gtav@val --count 12",
)

ChosenSamples = Annotated[
    str, argument("DATASET, DATASET:DOMAIN or ...@SPLIT.", metavar="SELECTION", complete=datasets)
]


def verify(
    name: Prepared,
    headers_only: Annotated[
        bool, option("Check the files' headers only, not every pixel.", "--headers-only")
    ] = False,
    deep: Annotated[
        bool, option("Compare images with the digests of 'prepare --hash-images'.", "--deep")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check every file of a prepared dataset; exit with code 4 if one is wrong."""
    from pinmem_core.data.prepared import PreparedDataset
    from pinmem_core.data.verify import verify as check

    output = Output(as_json=json, quiet=quiet)
    with output.listening() as listener:
        result = check(name, headers_only=headers_only, deep=deep, on_event=listener)
    findings = [f"{finding.file}: {finding.reason}" for finding in result.findings]
    verdict = f"{len(findings)} findings" if findings else "nothing wrong"
    output.result(
        {"dataset": name, **asdict(result)},
        *findings,
        f"{name}: {result.checked} samples checked ({counted(result.counts)}): {verdict}",
    )
    if findings:
        pack = " --from PACK" if PreparedDataset.open(name).came_in_pack else ""
        output.next_step(f"pinmem data prepare {name}{pack}")
        raise typer.Exit(VERIFICATION_FAILED)
    output.next_step(f"pinmem data stats {name}")


def stats(
    selection: ChosenSamples,
    plot: Annotated[
        Path | None, option("Plot class shares to this PNG, SVG or PDF.", "--plot")
    ] = None,
    images: Annotated[int, option("Images read for mean and std; 0 for all.", min=0)] = 500,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show how often classes and sizes occur, and the mean colors."""
    from pinmem_core.data.prepared import Selection, select
    from pinmem_core.data.preview import plot_statistics
    from pinmem_core.data.statistics import statistics
    from pinmem_core.plots import plot_format, write_plot

    if plot:
        plot_format(plot)  # fail before counting
    chosen = Selection.parse(selection)
    output = Output(as_json=json, quiet=quiet)
    with output.listening() as listener:
        samples = select(chosen, default_split="all")
        result = statistics(samples, chosen.dataset, images=images, on_event=listener)
    rows = table("class", "pixels", "share", "images")
    total = sum(result.class_pixels.values())
    for name, pixels in result.class_pixels.items():
        rows.add_row(name, f"{pixels:,}", f"{pixels / total:.3%}", str(result.class_images[name]))
    if plot:
        write_plot(plot, plot_statistics(result, str(chosen)))
    sizes = ", ".join(f"{w}x{h} ({count})" for w, h, count in result.sizes[:5])
    mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (result.mean, result.std))
    output.result(
        {"selection": str(chosen), **asdict(result), "plot": str(plot) if plot else None},
        rows,
        f"samples {result.samples}; sizes {sizes}",
        f"RGB mean {mean}; std {std} (of {result.looked_at} images, in 0..1)",
    )
    output.next_step(f"pinmem data preview {shell_join(selection)}")


def preview(
    selection: ChosenSamples,
    out: Annotated[
        Path | None, option("PNG to write; default: NAME-preview.png.", "--output", "-o")
    ] = None,
    count: Annotated[int, option("Number of samples.", min=1, max=50)] = 6,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw samples: image, labels, and both."""
    from pinmem_core.data.prepared import Selection, select
    from pinmem_core.data.preview import contact_sheet
    from pinmem_core.images import write_png

    chosen = Selection.parse(selection)
    samples = select(chosen, default_split="all")
    path = out or Path(f"{str(chosen).replace(':', '-').replace('@', '-')}-preview.png")
    write_png(path, contact_sheet(samples, count))
    output = Output(as_json=json, quiet=quiet)
    output.result({"output": str(path), "samples": len(samples)}, str(path))
    source = shell_join(selection.partition("@")[0])
    output.next_step(f"pinmem train --sources {source} --dry-run")
