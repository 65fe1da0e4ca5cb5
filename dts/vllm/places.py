"""How a packed adapter is named where vLLM has the path of a LoRA: its folder and what is in it.

vLLM keeps blocks of its cache by that path: an adapter that was replaced never meets what another one left.
"""

from __future__ import annotations

from pathlib import Path

from dts.adapter import Adapter
from dts.adapter.adapter import load_same

MARK = "#sha256-"


def place_of(folder: Path, digest: str) -> str:
    """FOLDER#sha256-DIGEST of an adapter;  digest: `Adapter.digest`, of its whole configuration."""
    return f"{folder}{MARK}{digest}"


def load_place(path: str) -> Adapter:
    """The adapter, all of it checked.  A folder without a digest is taken as it is.

    Raises AdapterError for one that is damaged, or no longer the one that was named.
    """
    folder, mark, digest = path.rpartition(MARK)
    return load_same(Path(folder), digest, "unload the name") if mark else Adapter.load(Path(path))
