"""Errors in OpenAI's shape: never a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dts.serve.http.asking import Gone, named
from dts.serve.refused import Refused

log = logging.getLogger("dts.serve")
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
SHOWN = 5  # mistakes of a body that are told
GONE = 499  # a status that nobody reads


def body_of(error: Refused) -> dict[str, Any]:
    kind = KINDS.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    message, param = (None if text is None else _writable(text) for text in (str(error), error.param))
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}


def _writable(text: str) -> str:
    """Without halves of characters, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode("utf-8")


def answer(error: Refused) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(error), error.status, headers)


def internal(request_id: str) -> Refused:
    """What is told of an error of ours."""
    return Refused(f"internal error: the server's log has it under {request_id}", 500, "internal_error")


def of_body(error: RequestValidationError) -> Refused:
    """What is wrong with a body, in a sentence; what was given is not repeated, as it may be anything."""
    found: dict[str, str] = {}
    for one in error.errors():
        place = ".".join(str(part) for part in one["loc"] if part != "body")
        if not place and isinstance(one.get("input"), bytes):  # which is not read where nobody says that it is JSON
            return Refused("send the body, JSON, with the header Content-Type: application/json", code="invalid_json")
        if one["type"] == "json_invalid":
            return Refused(f"the body is no JSON: {one.get('ctx', {}).get('error', one['msg'])}", code="invalid_json")
        if one["type"] == "extra_forbidden":
            found[place] = f"{place}: not supported here"
        else:
            words = one["msg"].removeprefix("Value error, ")
            found.setdefault(place, f"{place}: {words}" if place else words)
    return Refused("; ".join(list(found.values())[:SHOWN]), param=next(iter(found), None) or None)


def _unread(why: BaseException | None) -> str:
    """Why a body was not read."""
    if isinstance(why, RecursionError):
        return "the body is nested too deeply: lists in lists, or objects in objects"
    if isinstance(why, UnicodeError):
        return "the body cannot be read: it is to be JSON in UTF-8, not compressed"
    return "the body cannot be read: a number in it has thousands of digits"


def handle(app: FastAPI, paths: Sequence[str]) -> None:
    """Let the app answer every error so.  paths: of its routes."""

    @app.exception_handler(Refused)
    async def _refused(request: Request, error: Refused) -> JSONResponse:
        return answer(named(error, request))

    @app.exception_handler(Gone)
    async def _gone(request: Request, error: Gone) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(of_body(error))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        return answer(internal(request.state.request_id))  # the guard logs it

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, Refused):  # while the body was read
            return answer(error.__cause__)
        if error.status_code == 400:  # of FastAPI alone: of whatever keeps it from reading a body
            return answer(Refused(_unread(error.__cause__), code="invalid_json"))
        words = f"{request.method} {request.url.path[:200]}: {error.detail}"
        if error.status_code == 404:
            words += f"; there are {', '.join(dict.fromkeys(paths))}"
        found = answer(Refused(words, error.status_code))
        found.headers.update(error.headers or {})
        return found
