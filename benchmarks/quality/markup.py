"""Small pieces of HTML that the report's sections share."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence], kind: str = "", kinds: Sequence[str] = ()) -> str:
    """A table of cells that are HTML already; kind: its class, kinds: a class a row."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(
        f"<tr{_class(kinds[i] if kinds else '')}>" + "".join(f"<td>{value}</td>" for value in row) + "</tr>\n"
        for i, row in enumerate(rows)
    )
    return f"<table{_class(kind)}><tr>{top}</tr>\n{body}</table>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def image(name: str, title: str, caption: str = "", narrow: bool = False) -> str:
    """A plot beside the page, as SVG, with its PNG for whoever wants to take it."""
    text = f'<figcaption>{caption} <a href="{name}.png">PNG</a></figcaption>'
    picture = f'<img src="{name}.svg" alt="{html.escape(title)}">'
    return f"<figure{_class('narrow' if narrow else '')}>{picture}{text}</figure>"


def slug(name: str) -> str:
    """Of a suite's name: as it stands in anchors and in names of files."""
    return name.replace(" ", "-")


def kl_text(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}" if value >= 1e-4 else f"{value:.1e}"


def ratio_text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
