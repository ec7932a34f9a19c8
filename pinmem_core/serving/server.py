"""Run the web application with uvicorn."""

import json
import os
import socket
from asyncio import Transport
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pinmem_core.errors import ConfigError, MachineError

ANSWER_SECONDS = 60
"""Time in which a client must take an answer."""
_REQUEST_SECONDS = 10
"""Time in which the headers of a request must arrive."""
_LINGER_SECONDS = 2
"""Time in which what follows a malformed request is discarded."""
_SHUTDOWN_SECONDS = 10
"""Time that requests get to end after Ctrl-C."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens for connections; port 0 takes a free port.

    Raises:
        ConfigError: `host` is not an address of this machine.
        MachineError: The port is in use, or the user may not listen on it.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except socket.gaierror:
        raise ConfigError(
            f"'{host}' is not an address of this machine.", "Use --host 127.0.0.1 or 0.0.0.0."
        ) from None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise MachineError(
            f"cannot listen on port {port} of {host}: {reason}.", "Choose another --port or --host."
        ) from error


def run(app: Any, listening: socket.socket) -> None:
    """Serve an ASGI application until Ctrl-C or SIGTERM; requests that were begun are answered.

    Args:
        app: The application.
        listening: Socket of `listen`.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        headers=[("Connection", "close")],  # a request each, so that slow ones can be closed
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,  # a client could choose its address, by which requests are counted
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    uvicorn.Server(config).run([listening])


class _Connection(H11Protocol):
    """A connection that answers malformed requests in JSON.

    It is closed when no request comes, and when the client does not take the answer.
    """

    _is_limited = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(_REQUEST_SECONDS, self._close_without_request)

    def _close_without_request(self) -> None:
        if getattr(self, "cycle", None) is None:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit_answer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._limit_answer()

    def _limit_answer(self) -> None:
        if not self._is_limited:
            self._is_limited = True
            self.loop.call_later(ANSWER_SECONDS, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is not h11.ERROR:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        error = "the request is not valid HTTP, or its headers are too large."
        body = json.dumps({"error": error, "hint": None}).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        events: tuple[h11.Event, ...] = (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.write_eof()
        # A client that is still sending would not see the answer if it were closed at once.
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)
