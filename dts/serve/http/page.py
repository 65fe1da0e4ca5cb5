"""The page at /: one file, without anything from elsewhere, and allowed nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

FILE = Path(__file__).with_name("page.html")


@cache
def content() -> tuple[str, dict[str, str]]:
    """The page, and headers by which a browser runs its script and no other."""
    text = FILE.read_text("utf-8")
    digests = {
        tag: base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        for tag, inside in re.findall(r"<(script|style)>(.*?)</\1>", text, re.DOTALL)
    }
    policy = (
        f"default-src 'none'; connect-src 'self'; script-src 'sha256-{digests['script']}'; "
        f"style-src 'sha256-{digests['style']}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return text, headers


def routes() -> APIRouter:
    router = APIRouter()

    @router.get("/", response_class=HTMLResponse)
    def page() -> Response:
        text, headers = content()
        return HTMLResponse(text, headers=headers)

    return router
