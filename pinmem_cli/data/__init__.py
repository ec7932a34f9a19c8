"""`pinmem data`: get, prepare, check and inspect datasets."""

from pinmem_cli.data import inspect, prepare, share
from pinmem_cli.options import add, group

app = group("Get, prepare, check and inspect datasets.")
add(app, "list", inspect.list_datasets)
add(app, "info", inspect.info, *inspect.INFO_EXAMPLES)
add(app, "download", prepare.download, *prepare.DOWNLOAD_EXAMPLES)
add(app, "extract", prepare.extract, *prepare.EXTRACT_EXAMPLES)
add(app, "prepare", prepare.prepare, *prepare.EXAMPLES)
add(app, "verify", inspect.verify, *inspect.VERIFY_EXAMPLES)
add(app, "stats", inspect.stats, *inspect.STATS_EXAMPLES)
add(app, "preview", inspect.preview, *inspect.PREVIEW_EXAMPLES)
add(app, "pack", share.pack, *share.PACK_EXAMPLES)
add(app, "new-card", share.new_card, *share.CARD_EXAMPLES)
