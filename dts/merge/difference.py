"""DTS-D: a merged base and, for every fine-tune, an adapter of its difference to it."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dts.files import expanded
from dts.files.folder import PARTIAL, hidden

from .merge import merge


def compress_difference(
    base,
    finetunes: Mapping,
    method: str = "average",
    out: str | Path | None = None,
    *,
    options: dict | None = None,
    seed: int = 0,
    progress=None,
    class_names: Mapping | None = None,
    descriptions: Mapping | None = None,
    **compress,
):
    """Merge fine-tunes into a base theta_m and compress each against it.

    finetunes: {task name: model}; base: the pretrained model or None (method "average"); options: of the merging
    method; class_names, descriptions: {task name: ...}; everything else goes to ``dts.compress`` (``budget=``,
    ``rank_fraction=``, ``method`` of the codec as ``codec=``, ...).
    Writes out/base and out/adapters/<task>, all of it or nothing.
    Returns (path of the merged base, {task name: Adapter}).
    """
    from dts.adapter import compress as compress_one

    if not isinstance(finetunes, Mapping):
        raise TypeError("finetunes must be {task name: model}: the names become the adapters'")
    if out is None:
        raise ValueError("out is needed: the folder for the merged base and the adapters")
    if len(finetunes) < 2:
        raise ValueError(
            f"merging needs two fine-tunes or more, not {len(finetunes)}: compress a single one against its own base"
        )
    out = expanded(out)
    if "codec" in compress:
        compress["method"] = compress.pop("codec")
    made, adapters = [out / "base"], {}
    there = [folder for folder in (*made, out / "adapters", out) if folder.exists()]
    try:
        theta_m = merge(
            base, list(finetunes.values()), method, made[0], seed=seed, progress=progress, **(options or {})
        )
        for name, model in finetunes.items():
            folder = out / "adapters" / name
            made += [place for place in (folder, hidden(folder, PARTIAL)) if not place.exists()]
            adapters[name] = compress_one(
                theta_m,
                model,
                out=folder,
                kind="difference",
                name=name,
                progress=progress,
                class_names=(class_names or {}).get(name),
                description=(descriptions or {}).get(name),
                **compress,
            )
    except BaseException:  # a base without all of its adapters would be in the way of the next run, and of no use
        _undo([*made, out / "adapters", out], there)
        raise
    return theta_m, adapters


def _undo(folders: list[Path], there: list[Path]) -> None:
    """Takes away what was made: of the last two folders only what is empty, and nothing that was there before."""
    *own, adapters, out = folders
    for folder in own:
        if folder not in there:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in (adapters, out):
        if folder not in there:
            with suppress(OSError):
                folder.rmdir()
