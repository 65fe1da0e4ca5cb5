"""Sizes as people write them: 1%, 500KB, 2GiB."""

import math
import re
from typing import Any

PREFIXES = "kmgt"
UNITS = {"": 1} | {p: 1000**i for i, p in enumerate(PREFIXES, 1)}
UNITS |= {p + "i": 1024**i for i, p in enumerate(PREFIXES, 1)}
SIZE = re.compile(rf"(\d+\.?\d*|\.\d+)\s*(%|[{PREFIXES}]i?b?|b)?", re.IGNORECASE)


def parse_size(text: str) -> dict[str, Any]:
    """``1%`` or ``0.01`` -> {"budget": 0.01}, a fraction of the base in fp32;  ``5MB`` -> {"nbytes": 5000000}."""
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"size {text!r} is not understood: write 1% (of the base in fp32), 500KB, 5MB or 2MiB")
    number, unit = float(match[1]), (match[2] or "").lower()
    if unit == "%":
        return {"budget": number / 100}
    if not unit and number >= 1:
        share = f"{text}% of the base, or " if number <= 100 else ""
        raise ValueError(f"size {text!r} has no unit: write {share}{text}MB, {text}KB or {text}B")
    if not unit:
        return {"budget": number}
    nbytes = number * UNITS[unit.removesuffix("b")]
    if not math.isfinite(nbytes):
        raise ValueError(f"size {text[:20]!r}... is larger than any number of bytes")
    return {"nbytes": int(nbytes)}


def parse_bytes(text: str, what: str) -> int:
    """``500MB`` -> 500000000; what: the option it is of, for the error."""
    size = parse_size(text)
    if "nbytes" not in size:
        raise ValueError(f"{what} is in bytes: 500MB or 2GiB, not {text!r}")
    nbytes: int = size["nbytes"]
    return nbytes


def bytes_text(count: int) -> str:
    """1234567 -> ``1.23 MB``."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{count} B" if unit == "B" else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
        value /= 1000
    raise AssertionError
