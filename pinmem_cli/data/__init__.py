"""`pinmem data`: from what datasets there are to data that can be trained on."""

import typer

from pinmem_cli.data import inspect, prepare, share

app = typer.Typer(
    no_args_is_help=True,
    help="Get, prepare, check and look at datasets.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(inspect.list_datasets)
app.command("info", epilog=inspect.INFO_EXAMPLES)(inspect.info)
app.command("download", epilog=prepare.DOWNLOAD_EXAMPLES)(prepare.download)
app.command("extract", epilog=prepare.EXTRACT_EXAMPLES)(prepare.extract)
app.command("prepare", epilog=prepare.EXAMPLES)(prepare.prepare)
app.command("verify", epilog=inspect.VERIFY_EXAMPLES)(inspect.verify)
app.command("stats", epilog=inspect.STATS_EXAMPLES)(inspect.stats)
app.command("preview", epilog=inspect.PREVIEW_EXAMPLES)(inspect.preview)
app.command("pack", epilog=share.PACK_EXAMPLES)(share.pack)
app.command("new-card", epilog=share.CARD_EXAMPLES)(share.new_card)
