"""DTS-D: a merged base and, for every fine-tune, an adapter of its difference to it."""

from collections.abc import Mapping
from pathlib import Path

from dts.files import expanded

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
    Writes out/base and out/adapters/<task>. Returns (path of the merged base, {task name: Adapter}).
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
    theta_m = merge(
        base, list(finetunes.values()), method, out / "base", seed=seed, progress=progress, **(options or {})
    )
    adapters = {}
    for name, model in finetunes.items():
        adapters[name] = compress_one(
            theta_m,
            model,
            out=out / "adapters" / name,
            kind="difference",
            name=name,
            progress=progress,
            class_names=(class_names or {}).get(name),
            description=(descriptions or {}).get(name),
            **compress,
        )
    return theta_m, adapters
