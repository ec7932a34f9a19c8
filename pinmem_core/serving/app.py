"""The web application: its addresses, its queue, and its errors in JSON."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pinmem_core.errors import DataError, PinMemError
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.inference.predictor import TiledPredictor
from pinmem_core.serving.answers import Answer, answer, answer_mask
from pinmem_core.serving.limits import Limits, RateLimiter, read_body, refusal
from pinmem_core.version import __version__

_PAGE = Path(__file__).with_name("page")
_FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; media-src blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_PART = 1 << 16
"""Bytes of an answer that are sent at once."""
_UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "The bytes of an image file, without a form around them.",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def create_app(
    models: Mapping[str, TiledPredictor],
    limits: Limits = Limits(),  # noqa: B008  # it is frozen
    on_event: Listener = ignore,
) -> FastAPI:
    """Return the ASGI application that serves models.

    `GET /` is the page, `POST /api/predict` predicts the image in the body, `GET /api/models` and
    `GET /api/health` describe the server. No request leads to a file: the page is read here, once.

    Args:
        models: Predictors by the names that clients use; the first one is the default.
        limits: Limits of clients.
        on_event: Callback for notices about unexpected errors.
    """
    predictions = _Predictions(models, limits, on_event)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        predictions.worker.shutdown(cancel_futures=True)

    app = FastAPI(
        title="pinmem", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )  # the pages of docs_url and redoc_url load scripts from elsewhere
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(ClientDisconnect, _leave)
    for address, (name, kind) in _FILES.items():
        page = Response((_PAGE / name).read_bytes(), media_type=kind, headers=_HEADERS)
        app.router.routes.append(Route(address, page, methods=["GET"]))

    @app.get("/api/health")
    async def health() -> dict[str, Any]:
        """Report that the server is up, and how many requests it is serving."""
        return {"status": "ok", "version": __version__, "requests": predictions.requests}

    @app.get("/api/models")
    async def list_models() -> dict[str, Any]:
        """List the models, the default first, and the limits."""
        return {
            "models": [{"name": n, "classes": m.label_space.classes} for n, m in models.items()],
            "limits": {"upload": limits.upload, "megapixels": limits.megapixels},
        }

    @app.post(
        "/api/predict",
        response_model=Answer,
        responses={200: {"content": {"image/png": {}}}},
        openapi_extra=_UPLOAD,
    )
    async def predict(
        request: Request, model: Annotated[str | None, Query(description="Name of a model.")] = None
    ) -> Response:
        """Predict the image in the body; `Accept: image/png` asks for the mask of ids alone."""
        return await predictions.predict(request, model)

    return app


class _Predictions:
    """The models, and the single thread that runs them."""

    def __init__(
        self, models: Mapping[str, TiledPredictor], limits: Limits, on_event: Listener
    ) -> None:
        self.models = models
        self.limits = limits
        self.on_event = on_event
        self.rate = RateLimiter(limits.per_minute)
        self.worker = ThreadPoolExecutor(1, "predict")
        self.requests = 0

    async def predict(self, request: Request, model: str | None) -> Response:
        """Return the answer to an upload; wait for a place in the queue's order."""
        try:
            name = self._admit(request, model)
        except HTTPException:
            with suppress(HTTPException):
                await read_body(request, self.limits, keep=False)
            raise
        self.requests += 1
        try:
            content = await read_body(request, self.limits)
            body, kind = await self._run(request, name, content)
        except asyncio.CancelledError:
            self._end_request()
            raise refusal(
                503, "the server was stopped.", "Ask again later.", retry_after=1
            ) from None
        except BaseException:
            self._end_request()
            raise
        return _Reply(body, kind, self._end_request)

    def _end_request(self) -> None:
        self.requests -= 1

    def _admit(self, request: Request, model: str | None) -> str:
        """Return the name of the model that is asked for, if the client may ask now."""
        if wait := self.rate.take(request.client.host if request.client else ""):
            raise refusal(
                429,
                f"this address has sent {self.limits.per_minute} requests in a minute.",
                "Ask again later.",
                retry_after=wait,
            )
        if self.requests >= self.limits.requests:
            raise refusal(503, "the server is busy.", "Ask again later.", retry_after=1)
        name = model or next(iter(self.models))
        if name not in self.models:
            raise refusal(404, "there is no model of this name.", "/api/models lists the models.")
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            raise refusal(
                415,
                "the body is a form, not an image.",
                "Send the bytes of the file as the body: 'curl --data-binary @street.jpg ...'.",
            )
        return name

    async def _run(self, request: Request, name: str, content: bytes) -> tuple[bytes, str]:
        """Predict in the worker, unless the client leaves before."""
        loop = asyncio.get_running_loop()
        wants_png = request.headers.get("accept", "").lower().startswith("image/png")
        upload = [content]  # the worker keeps a cancelled job until its turn comes
        job = loop.run_in_executor(self.worker, self._answer, wants_png, name, upload)
        gone = asyncio.ensure_future(request.receive())
        first: set[asyncio.Future[Any]] = {job, gone}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not job.done():
            job.cancel()
            upload.clear()
            raise ClientDisconnect
        return job.result()

    def _answer(self, wants_png: bool, name: str, upload: list[bytes]) -> tuple[bytes, str]:
        content = next(iter(upload), b"")
        reply = answer_mask if wants_png else answer
        try:
            return reply(name, self.models[name], content, self.limits.megapixels)
        except HTTPException:
            raise
        except PinMemError as error:
            status = 400 if isinstance(error, DataError) else 500
            raise refusal(status, error.message, error.hint) from error
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self.on_event(Notice(f"a request failed: {text}", warning=True))
            raise refusal(500, "the prediction failed.", "The server's output says why.") from error


class _Reply(Response):
    """An answer whose parts wait until the client has taken those before, so that none pile up.

    Args:
        content: Body.
        kind: Media type.
        on_end: Callback when the client has it, or has gone.
    """

    def __init__(self, content: bytes, kind: str, on_end: Callable[[], None]) -> None:
        super().__init__(content, media_type=kind, headers=_HEADERS)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            for begin in range(0, len(self.body), _PART):
                end = begin + _PART
                part, more = self.body[begin:end], end < len(self.body)
                await send({"type": "http.response.body", "body": part, "more_body": more})
        finally:
            self._on_end()


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail: Any = error.detail
    if isinstance(detail, str):  # of the framework
        detail = {"error": f"{detail}.", "hint": None}
    return JSONResponse(detail, error.status_code, {**_HEADERS, **(error.headers or {})})


async def _leave(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the upload ended early.", "hint": None}, 400)
