"""`pinmem data`: from what datasets there are to data that can be trained on."""

import typer

from pinmem_cli.data import acquire, look, move, overview, prepare

app = typer.Typer(
    no_args_is_help=True,
    help="Get, prepare, check and look at datasets.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(overview.list_datasets)
app.command("info", epilog=overview.INFO_EXAMPLES)(overview.info)
app.command("download", epilog=acquire.DOWNLOAD_EXAMPLES)(acquire.download)
app.command("extract", epilog=acquire.EXTRACT_EXAMPLES)(acquire.extract)
app.command("prepare", epilog=prepare.EXAMPLES)(prepare.prepare)
app.command("verify", epilog=look.VERIFY_EXAMPLES)(look.verify)
app.command("stats", epilog=look.STATS_EXAMPLES)(look.stats)
app.command("preview", epilog=look.PREVIEW_EXAMPLES)(look.preview)
app.command("pack", epilog=move.PACK_EXAMPLES)(move.pack)
app.command("new-card", epilog=move.CARD_EXAMPLES)(move.new_card)
