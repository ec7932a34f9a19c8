"""`pinmem serve`: a page and a JSON API to try models on."""

from typing import Annotated

import typer

from pinmem_cli.names import models as known_models
from pinmem_cli.names import protocols
from pinmem_cli.options import Device, Json, Precision, Quiet, names, option
from pinmem_cli.output import INTERRUPTED, Output
from pinmem_core.errors import ConfigError

EXAMPLES = (
    "pinmem serve",
    "pinmem serve --model RUN --model starter --port 9000",
    "pinmem serve --host 0.0.0.0 --per-minute 60",
    "curl --data-binary @street.jpg 'http://127.0.0.1:8000/api/predict?model=starter'",
)

_LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    models: Annotated[
        list[str] | None,
        option(
            "Runs, checkpoint folders, ONNX files, user/name@revision, last, or starter (default). "
            "The first one is the default of the page.",
            "--model",
            metavar="MODEL,...",
            complete=known_models,
        ),
    ] = None,
    host: Annotated[
        str, option("Address to listen on; 0.0.0.0 for all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, option("Port to listen on; 0 for a free one.", min=0, max=65535)] = 8000,
    protocol: Annotated[
        str | None,
        option(
            "{protocols}; or one with changes. Default: the model's own, else fast.",
            complete=protocols,
        ),
    ] = None,
    precision: Precision = "float32",
    device: Device = "auto",
    max_upload: Annotated[
        int, option("Largest upload in MiB.", panel="Limits", min=1, max=1024)
    ] = 16,
    max_megapixels: Annotated[
        float, option("Largest image in megapixels.", panel="Limits", min=0.01, max=178)
    ] = 24,
    max_requests: Annotated[
        int, option("Uploads at the same time; more get status 503.", panel="Limits", min=1)
    ] = 32,
    per_minute: Annotated[
        int, option("Requests per minute of one client address.", panel="Limits", min=1)
    ] = 600,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve a page and a JSON API to try models on, until Ctrl-C."""
    from pinmem_core.inference.protocols import get_protocol
    from pinmem_core.serving import require_fastapi

    require_fastapi()
    chosen = get_protocol(protocol) if protocol else None
    if chosen and chosen.view != "native":
        message = f"'{protocol}' says which part of an image is scored: it is for evaluation."
        raise ConfigError(message, "Choose another, such as paper-train.")

    from pinmem_core.serving.app import create_app
    from pinmem_core.serving.limits import Limits
    from pinmem_core.serving.models import load_models
    from pinmem_core.serving.server import listen, run

    output = Output(as_json=json, quiet=quiet)
    limits = Limits(max_upload * 2**20, max_megapixels, max_requests, per_minute)
    with listen(host, port) as socket:
        with output.listening() as listener:
            predictors = load_models(
                names(models) or ["starter"],
                protocol=chosen,
                precision=precision,
                device=device,
                on_event=listener,
            )
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{socket.getsockname()[1]}"
        if host not in _LOCAL:
            output.note("warning: everyone who reaches this address can use the server")
        output.result({"url": url, "models": [*predictors]}, url)
        output.note(f"serving {', '.join(predictors)}; Ctrl-C ends it")
        try:
            with output.listening() as listener:
                run(create_app(predictors, limits, listener), socket)
        except KeyboardInterrupt:
            output.note("stopped")
            raise typer.Exit(INTERRUPTED) from None
