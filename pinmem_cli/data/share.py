"""`pinmem data pack` and `new-card`: move data to another machine, and describe your own."""

from pathlib import Path
from typing import Annotated

from pinmem_cli.data.prepare import Height, Quality, Reencode, reencoding_of
from pinmem_cli.options import Force, Json, Prepared, Quiet, argument, names, option, shell_join
from pinmem_cli.output import Output, size
from pinmem_core.errors import ConfigError

PACK_EXAMPLES = (
    "pinmem data pack gtav -o gtav.tar --reencode jpeg --height 720",
    "pinmem data prepare gtav --from gtav.tar   # on the other machine",
)
CARD_EXAMPLES = ("pinmem data new-card ~/mycity --name mycity -o mycity.yaml",)


def pack(
    name: Prepared,
    out: Annotated[
        Path | None, option("Archive to write; default: NAME.tar.", "--output", "-o")
    ] = None,
    splits: Annotated[
        list[str] | None,
        option("Only these splits, e.g. train,val.", "--splits", metavar="SPLIT,..."),
    ] = None,
    reencode: Reencode = None,
    quality: Quality = None,
    height: Height = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a prepared dataset with its images into one archive for another machine."""
    from pinmem_core.data.pack import pack as write_pack

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
    folder: Annotated[Path, argument("Folder of your images and labels.")],
    name: Annotated[
        str | None, option("Name of the dataset; default: the folder's.", "--name")
    ] = None,
    out: Annotated[
        Path | None, option("Card to write; default: NAME.yaml.", "--output", "-o")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draft a card for your own data from the names and contents of a folder."""
    from pinmem_core.data.new_card import new_card as draft
    from pinmem_core.files import write_atomic

    chosen = name or folder.resolve().name.lower().replace(" ", "-")
    path = out or Path(f"{chosen}.yaml")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists.", "Name another file with -o, or add --force.")
    output = Output(as_json=json, quiet=quiet)
    with output.listening() as listener:
        write_atomic(path, draft(folder, chosen, listener).encode())
    output.result({"card": str(path), "dataset": chosen}, str(path))
    output.note(f"Check {path} and correct it.")
    output.next_step(f"pinmem data prepare {shell_join(chosen, '--card', path, '--from', folder)}")
