"""What an adapter folder takes in bytes and loses in error, to the byte, before it is written.

A budget is of the whole folder, whose texts say how many bytes it takes: so sizes are counted from the very texts and
headers that are written.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from dts.adapter.card import card
from dts.adapter.digests import config_digest, content_digest, row_digest, shown, version_of
from dts.adapter.entries import Entry
from dts.adapter.packed import blobs_of, packed
from dts.adapter.rows import entry_row, entry_tensors
from dts.adapter.text import number
from dts.checkpoint.safetensors_file import Layout, header_bytes, layout_of
from dts.codec import Factors

HEADER_BYTES = 48  # of one matrix's row, nearly


def measured(
    config: dict, entries: dict[str, Entry], base_digests: dict, digests: bool = False, beside: int = 0
) -> int:
    """Bytes of an adapter folder with these entries; brings ``config`` up to date.

    digests: of what is stored; else zeros of the same length, while sizes are planned;  beside: bytes of what a router
    knows.
    """
    sizes = describe(config, entries.values(), base_digests, digests)
    config["squared_error"] = overall_error(config, entries)
    return total_bytes(config, sizes, beside).total


def overall_error(config: dict, entries: dict[str, Entry]) -> float | None:
    """Squared relative error of the whole difference; None if a tensor does not know its own."""
    lost, whole, dropped = 0.0, 0.0, sum(norm**2 for norm in config["dropped"].values())
    for entry in entries.values():
        if entry.name in config["dropped"]:
            continue
        if entry.squared_error is None:
            return None
        lost += entry.squared_error * entry.norm**2
        whole += entry.norm**2
    return number((dropped + lost) / (whole + dropped)) if whole + dropped else 0.0


def whole_error(norm: float, factors: Sequence[Factors | None]) -> float | None:
    """Squared relative error of a tensor whose delta has this norm; what has no factors is lost whole.

    None if one of the factors does not know its own.
    """
    explained = 0.0
    for kept in factors:
        if kept is None:
            continue
        if kept.squared_error is None:
            return None
        explained += (1 - kept.squared_error) * kept.norm**2
    return max(0.0, 1 - explained / norm**2) if norm else 0.0


def describe(config: dict, entries: Iterable[Entry], base_digests: dict, digests: bool = True) -> dict[str, Layout]:
    """Brings ``tensors`` and ``format_version`` of a config up to date; gives the layout of every entry's tensors.

    base_digests: by the entries' names;  digests: else zeros of the same length, while sizes are planned.
    """
    entries = list(entries)
    sizes: dict[str, Layout] = {}
    found: list[str] = []
    dtype = getattr(torch, config["finetuned"]["dtype"])
    config["format_version"], config["tensors"] = version_of(entries), {}
    for entry in entries:
        own = entry_tensors(entry)
        layout = layout_of(own.items())
        row = config["tensors"][entry.name] = entry_row(entry, dtype, base_digests.get(entry.name), layout)
        found.append(row_digest(entry.name, own, row) if digests else "0" * 64)
        row["sha256"] = shown(found[-1])
        sizes[entry.name] = layout
    config["content"] = content_digest(found)
    return sizes


@dataclass(frozen=True)
class Texts:
    """What is written beside the tensors: ``dts_config.json``, the table of their rows, README.md; and the bytes of the
    whole folder."""

    config: str
    table: bytes
    card: str
    total: int


def total_bytes(config: dict, sizes: dict[str, Layout], beside: int = 0) -> Texts:
    """What is written; sets ``bytes``, ``amr`` and ``sha256`` of the config to the truth.

    config: complete, with its ``tensors`` and ``files``;  sizes: of every entry's tensors;  beside: bytes of what a
    router knows.
    """
    content, table = packed(config, sizes)
    blobs, _ = blobs_of(sizes.values(), table)
    start, _ = header_bytes(blobs)
    payload = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in blobs.values())
    fixed, total = len(start) + payload + sum(f["bytes"] for f in config["files"].values()) + beside, 0
    config["sha256"] = "0" * 16
    while True:  # the texts say how many bytes they take
        config["bytes"] = total
        config["amr"] = number(total / (4 * max(1, config["base"]["parameters"])))
        text, readme = config_text(content, config), card(config)
        size = fixed + len(text.encode()) + len(readme.encode())
        if size <= total:
            config["sha256"] = config_digest(config)  # as long as what it takes the place of
            return Texts(config_text(content, config) + "\n" * (total - size), table, readme, total)
        total = size


def config_text(content: dict, config: dict) -> str:
    """JSON with a line a key, the content's; with what changes as the folder's size is found."""
    lines = (content | {key: config[key] for key in ("bytes", "amr", "sha256")}).items()
    dumped = (f'"{key}":{json.dumps(value, ensure_ascii=False, separators=(",", ":"))}' for key, value in lines)
    return "{" + ",\n".join(dumped) + "}\n"
