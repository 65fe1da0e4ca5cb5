"""How long a request's header may be: of uvicorn's two parsers one, httptools, keeps whatever comes.

A header has as many seconds to come as `dts.serve.http.patience` gives it, and in these a gigabyte may.
"""

from __future__ import annotations

from typing import Any

LONGEST = 64 * 1024  # bytes, as the other parser, h11, has it


def bounded(base: Any) -> Any:
    """A protocol of uvicorn that calls ``too_long()`` as soon as a header has more than `LONGEST` bytes.

    What is neither a header's end nor a body's part is a header's, the trailer of a body in chunks among it.
    """
    if not hasattr(base, "on_headers_complete"):  # no callbacks of httptools: h11, which has a limit
        return base

    class Bounded(base):
        unparsed = 0  # bytes since the last of these callbacks

        def data_received(self, data: bytes) -> None:
            self.unparsed += len(data)
            super().data_received(data)
            if self.unparsed > LONGEST and not self.transport.is_closing():
                self.too_long()

        def on_headers_complete(self) -> None:
            self.unparsed = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.unparsed = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self.unparsed = 0
            super().on_message_complete()

    return Bounded
