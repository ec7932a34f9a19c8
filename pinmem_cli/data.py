"""`pinmem data`: what datasets there are, preparing them, looking at them."""

from pathlib import Path
from typing import Annotated

import typer

from pinmem_cli.options import Json, Quiet, examples
from pinmem_cli.output import Output, table

app = typer.Typer(
    no_args_is_help=True,
    help="List, prepare and look at datasets.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def list_datasets(json: Json = False, quiet: Quiet = False) -> None:
    """List the datasets that pinmem knows, and what is prepared of them."""
    from pinmem_core.datasets import cards
    from pinmem_core.home import dataset_root
    from pinmem_core.preparation import PreparedDataset
    from pinmem_core.preparation.prepared import SUMMARY

    entries = []
    rows = table("dataset", "samples", "domains")
    for card in cards().values():
        is_prepared = (dataset_root(card.name) / SUMMARY).exists()
        dataset = PreparedDataset.open(card.name) if is_prepared else None
        entries.append(
            {
                "name": card.name,
                "title": card.title,
                "homepage": card.homepage,
                "terms": card.terms,
                "citation": card.citation,
                "domains": card.domains,
                "prepared": is_prepared,
                "counts": dataset.counts if dataset else {},
            }
        )
        counts = ", ".join(f"{split} {n}" for split, n in dataset.counts.items()) if dataset else ""
        rows.add_row(card.name, counts or "not prepared", ", ".join(card.domains))
    output = Output(as_json=json, quiet=quiet)
    output.result({"datasets": entries}, rows)
    output.next_step("pinmem data prepare NAME")


@app.command(
    epilog=examples("pinmem data prepare camvid --from ~/CamVid", "pinmem data prepare demo")
)
def prepare(
    name: Annotated[str, typer.Argument(help="The dataset; 'pinmem data list' shows all.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="The folder where you have it.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse the dataset when any sample is defective.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a dataset's files and unify its labels; images stay where they are."""
    from pinmem_core.datasets import get_card
    from pinmem_core.preparation import prepare as prepare_dataset
    from pinmem_core.preparation.prepared import MANIFEST

    output = Output(as_json=json, quiet=quiet)
    with output.listening() as listener:
        dataset = prepare_dataset(get_card(name), source, strict=strict, on_event=listener)
    excluded = dataset.summary["excluded"]
    for defect in excluded:
        output.note(f"left out: {defect['file']}: {defect['reason']}")
    counts = ", ".join(f"{split} {count}" for split, count in dataset.counts.items())
    output.result(
        {
            "dataset": name,
            "root": str(dataset.root),
            "manifest": str(dataset.root / MANIFEST),
            "counts": dataset.counts,
            "excluded": excluded,
            "digest": dataset.summary["digest"],
        },
        f"{dataset.summary['title']}: {dataset.summary['layout']}",
        f"samples   {counts}; left out {len(excluded)}",
        f"domains   {', '.join(f'{domain} {n}' for domain, n in dataset.domains.items())}",
        f"folder    {dataset.root}",
        f"digest    {dataset.summary['digest']}",
    )
    output.next_step(f"pinmem data preview {name}")


@app.command(epilog=examples("pinmem data preview camvid:0001TP -o dusk.png"))
def preview(
    selection: Annotated[str, typer.Argument(help="dataset, dataset:domain or ...@split.")],
    out: Annotated[Path | None, typer.Option("--output", "-o", help="The PNG to write.")] = None,
    count: Annotated[int, typer.Option(min=1, max=50, help="Samples to show.")] = 6,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw a sheet of samples: image, unified labels, both."""
    from pinmem_core.images import write_png
    from pinmem_core.preparation import Selection, select
    from pinmem_core.preparation.preview import contact_sheet

    chosen = Selection.parse(selection)
    samples = select(chosen, default_split="all")
    path = out or Path(f"{str(chosen).replace(':', '-').replace('@', '-')}-preview.png")
    write_png(path, contact_sheet(samples, count))
    output = Output(as_json=json, quiet=quiet)
    output.result({"output": str(path), "samples": len(samples)}, str(path))
    output.next_step(f"pinmem train --sources {selection},...")
