"""`pinmem data pack` and `new-card`: move data to another machine, and describe your own."""

from pathlib import Path
from typing import Annotated

import typer

from pinmem_cli.data.prepare import Height, Quality, Reencode, reencoding_of
from pinmem_cli.options import Json, Quiet, examples, names, shell_join
from pinmem_cli.output import Output, size
from pinmem_core.errors import ConfigError

PACK_EXAMPLES = examples(
    "pinmem data pack gtav -o gtav.tar --reencode jpeg --height 720",
    "pinmem data prepare gtav --from gtav.tar   # on the other machine",
)
CARD_EXAMPLES = examples("pinmem data new-card ~/mycity --name mycity -o mycity.yaml")

Force = Annotated[bool, typer.Option("--force", help="Overwrite the file.")]


def pack(
    name: Annotated[str, typer.Argument(help="A prepared dataset.")],
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="The archive (default: NAME.tar).")
    ] = None,
    splits: Annotated[
        list[str] | None,
        typer.Option("--splits", help="Only these, e.g. train,val; by comma, or repeated."),
    ] = None,
    reencode: Reencode = None,
    quality: Quality = None,
    height: Height = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a prepared dataset, images included, into one archive for another machine."""
    from pinmem_core.data.share import pack as write_pack

    path = out or Path(f"{name}.tar")
    output = Output(as_json=json, quiet=quiet)
    with output.listening() as listener:
        summary = write_pack(
            name,
            path,
            reencoding=reencoding_of(reencode, quality, height),
            splits=names(splits),
            overwrite=force,
            on_event=listener,
        )
    output.result(
        {
            "output": str(summary.path),
            "samples": summary.samples,
            "bytes": summary.bytes,
            "digest": summary.digest,
        },
        f"{summary.path}  {size(summary.bytes)}, {summary.samples} samples",
        f"digest {summary.digest}",
    )
    output.note("on the other machine:")
    output.next_step(f"pinmem data prepare {shell_join(name, '--from', path)}")


def new_card(
    folder: Annotated[Path, typer.Argument(help="Where your images and labels are.")],
    name: Annotated[
        str | None, typer.Option("--name", help="What to call the dataset (default: the folder).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="The card (default: NAME.yaml).")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a card for data of your own, as far as looking at the folder tells."""
    from pinmem_core.data.new_card import new_card as draft
    from pinmem_core.files import write_atomic

    chosen = name or folder.resolve().name.lower().replace(" ", "-")
    path = out or Path(f"{chosen}.yaml")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists.", "Name another file with -o, or add --force.")
    write_atomic(path, draft(folder, chosen).encode())
    output = Output(as_json=json, quiet=quiet)
    output.result({"card": str(path), "dataset": chosen}, str(path))
    output.note(f"read {path}, and correct what it has wrong")
    output.next_step(f"pinmem data prepare {shell_join(chosen, '--card', path, '--from', folder)}")
