"""Why a request gets no answer, in words for who asked."""

from __future__ import annotations

INPUT = "input"  # ``param`` of what is wrong with a request's rows, which every route has its own name for


class Refused(ValueError):
    """status: HTTP's;  code: a word for programs;  param: the field it is about;  retry_after: seconds."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


class NoRoom(Refused):
    """The tasks of a batch do not fit in memory together."""

    def __init__(self, message: str):
        super().__init__(message, 507, "insufficient_memory", "model")


class NotFinite(Refused):
    """A model's numbers are none for an input: weights of a mixture, or values of an adapter, that are too large."""

    def __init__(self) -> None:
        super().__init__(
            "what this model makes of the input is no number: its task, or a weight of the mixture, is too large",
            400,
            "not_finite",
            "model",
        )
