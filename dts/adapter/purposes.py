"""What the bytes of an adapter's folder are for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dts.adapter.card import card
from dts.adapter.entries import Entry
from dts.adapter.folder import CARD, CONFIG, MODEL
from dts.adapter.packed import blobs_of, packed
from dts.adapter.rows import entry_tensors
from dts.adapter.sizes import total_bytes
from dts.checkpoint.safetensors_file import header_bytes, layout_of

if TYPE_CHECKING:
    from dts.adapter.data import AdapterData

CONTENT = ("weights", "vectors", "heads", "other values")  # the tensors themselves; everything else says what they are
TABLED = ("names", "rows")  # of a configuration on disk: what the table's numbers are of
DIGEST_BYTES = {"sha256": 4, "base": 4}  # of a row, in the table


def purposes(adapter: AdapterData) -> dict[str, int]:
    """Purpose -> bytes, which add up to `Adapter.nbytes`: tensors by what they are, then what is said of them.

    "weights" are matrices' parts and rows beyond the base's vocabulary, "vectors" differences of biases and norms,
    "heads" what only the fine-tune has.
    """
    found = dict.fromkeys(CONTENT, 0)
    layouts = {}
    for name, entry in adapter.entries.items():
        layouts[name] = layout_of(tensors := entry_tensors(entry).items())
        found[_purpose(entry)] += sum(tensor.nbytes for _, tensor in tensors)
    found["tokenizer files"] = sum(about["bytes"] for about in adapter.config["files"].values())
    found["router"] = adapter.beside
    if adapter.config["format_version"] < 5:
        found |= _of_files(adapter, sum(found[purpose] for purpose in CONTENT))
    else:
        found |= _of_texts(adapter, layouts)
    return {purpose: count for purpose, count in found.items() if count}


def _purpose(entry: Entry) -> str:
    if entry.factorised:
        return "weights"
    if entry.task_only:
        return "heads"
    return "vectors" if entry.kind == "delta" else "other values"


def _of_texts(adapter: AdapterData, layouts: dict) -> dict[str, int]:
    config = dict(adapter.config)
    content, table = packed(config, layouts)
    rows = sum(len(json.dumps(content[key], ensure_ascii=False, separators=(",", ":")).encode()) for key in TABLED)
    digests = sum(DIGEST_BYTES[key] for row in config["tensors"].values() for key in DIGEST_BYTES if row.get(key))
    text = total_bytes(config, layouts, adapter.beside).config.encode()
    return {
        "names and rows": rows + len(table) - digests,
        "digests": digests,
        "description": len(text) - rows,
        "card": len(card(adapter.config).encode()),
        "header": len(header_bytes(blobs_of(layouts.values(), table)[0])[0]),
    }


def _of_files(adapter: AdapterData, content: int) -> dict[str, int]:
    """Of a folder from before version 5, whose rows stand in the configuration's text."""
    if adapter.folder is None:
        return {"description": adapter.nbytes - content}
    paths = {name: adapter.folder / name for name in (CONFIG, MODEL, CARD)}
    size = {name: path.stat().st_size if path.is_file() else 0 for name, path in paths.items()}
    return {"description": size[CONFIG], "card": size[CARD], "header": size[MODEL] - content}
