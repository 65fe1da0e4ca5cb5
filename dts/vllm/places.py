"""How a packed adapter is named where vLLM has the path of a LoRA: its folder and what is in it.

vLLM keeps blocks of its cache by that path: an adapter that was replaced never meets what another one left.
"""

from __future__ import annotations

from pathlib import Path

from dts.adapter import Adapter
from dts.adapter.digests import config_digest

MARK = "#sha256-"


def place_of(folder: Path, digest: str) -> str:
    """FOLDER#sha256-DIGEST of an adapter;  digest: of its whole configuration (`config_digest`)."""
    return f"{folder}{MARK}{digest}"


def load_place(path: str) -> Adapter:
    """The adapter, all of it checked.  A folder without a digest is taken as it is.

    Raises AdapterError for one that is damaged, or no longer the one that was named.
    """
    from dts.adapter import AdapterError

    folder, mark, digest = path.rpartition(MARK)
    adapter = Adapter.load(Path(folder if mark else path))
    if mark and config_digest(adapter.config) != digest:
        raise AdapterError(f"{folder} holds another adapter than when the task was first asked for: unload the name")
    return adapter
