"""How long a connection may say nothing, say a part of a request's header, or not read: uvicorn waits for ever.

What it is told then, and where it says what is no HTTP, has the shape of all other errors.

A few hundred of them would take all that a process may have open.  What follows a header is the guard's business.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from dts.serve.http.errors import answer
from dts.serve.http.headers import LONGEST as BYTES
from dts.serve.http.headers import bounded
from dts.serve.refused import Refused

LONGEST = 20.0  # seconds that a header may take from the first moment on in which one could come


def patient(
    seconds: float, refused: Callable[[int], None] = lambda status: None, most: float = math.inf
) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which closes connections whose header does not come whole in time, told 408 if it has begun,
    and those that take nothing of what is said to them, and tells 503 to those that are too many.

    seconds: of a header, `LONGEST` at most, and that an answer may lie unread;  refused: told the status of each
    refusal;  most: connections that may be open.
    """
    unread, seconds = seconds, min(seconds, LONGEST)
    base: Any = bounded(AutoHTTPProtocol)

    class Patient(base):  # one of two classes, whichever is there
        begun = False
        late: asyncio.TimerHandle | None = None
        full: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                words = f"{most:g} connections are open, and no more may be: ask again later"
                self.end(Refused(words, 503, "too_many_connections", retry_after=1))
            else:
                self.look()

        def data_received(self, data: bytes) -> None:
            self.begun = True
            super().data_received(data)
            self.look()

        def connection_lost(self, error: Exception | None) -> None:
            self.stop()
            self.read()
            super().connection_lost(error)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.read()
            self.full = self.loop.call_later(unread, self.transport.abort)

        def resume_writing(self) -> None:
            self.read()
            super().resume_writing()

        def read(self) -> None:
            if self.full is not None:
                self.full.cancel()
                self.full = None

        def look(self) -> None:
            """A request whose header is there has other limits; the next one's has a time of its own."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.stop()
                self.begun = False
            elif self.late is None:
                self.late = self.loop.call_later(seconds, self.close_late)

        def stop(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

        def close_late(self) -> None:
            self.late = None
            if self.transport.is_closing():
                return
            if self.begun:
                self.end(Refused(f"no whole header came in {seconds:g} seconds", 408, "request_timeout"))
            else:
                self.transport.close()

        def too_long(self) -> None:
            self.end(Refused(f"a header has more than {BYTES} bytes", 431, "header_too_large"))

        def send_400_response(self, msg: str) -> None:
            self.end(Refused(msg, 400, "invalid_http"))

        def end(self, error: Refused) -> None:
            """The connection's last words, unless they would stand in an answer that has begun."""
            refused(error.status)
            cycle = self.cycle
            if cycle is None or cycle.response_complete or not cycle.response_started:
                told = answer(error)
                head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
                head += [name + b": " + value for name, value in told.raw_headers]
                self.transport.write(b"\r\n".join([*head, b"connection: close", b"", bytes(told.body)]))
            self.transport.close()

    return Patient
