"""Writing what a model is: the task that is set as a full model, the base, or the adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from dts.files import expanded
from dts.nn.loaded import LoadedTasks
from dts.nn.routing import Mixture
from dts.nn.views import distinct, plain

What = Literal["model", "base", "adapters"]


def save_pretrained(
    model: nn.Module,
    tasks: LoadedTasks,
    mixtures: list[Mixture],
    merged: Callable[[dict[str, float]], nn.Module],
    folder: str | Path,
    what: What,
    options: dict[str, Any],
) -> Any:
    """See `DTSModel.save_pretrained`.  mixtures: what is set;  merged: a plain copy of the model with a mixture."""
    if what not in get_args(What):
        raise ValueError(f"what is written is one of {', '.join(map(repr, get_args(What)))}, not {what!r}")
    if what == "adapters":
        return _save_adapters(tasks, expanded(folder), options)
    folder = expanded(folder)
    chosen = distinct(mixtures) if what == "model" else [{}]
    if len(chosen) > 1:
        raise ValueError(
            "the rows are set to several tasks, and a folder has one model: set_task() the one to write, or "
            "what='adapters' or 'base'"
        )
    if not hasattr(plain(model), "save_pretrained"):
        raise AttributeError(f"{type(plain(model)).__name__} has no save_pretrained: only models of a library have")
    if not chosen[0]:
        saved: Any = plain(model)
    elif options.get("state_dict") is not None:
        raise ValueError(
            "state_dict= would be written in the place of the task's weights: leave it out, or say what='base'"
        )
    else:
        saved = merged({tasks.names[slot]: weight for slot, weight in chosen[0].items()})
    return saved.save_pretrained(folder, **options)


def _save_adapters(tasks: LoadedTasks, folder: Path, options: dict[str, Any]) -> None:
    """Each loaded task's adapter, in a folder of its name."""
    bare = [name for name, loaded in tasks.items() if loaded.adapter is None]
    if bare or not tasks:
        raise ValueError(
            f"tasks that were loaded from entries have no adapter to write: {bare}" if bare else "no task is loaded"
        )
    strange = [name for name in tasks if Path(name).name != name]
    if strange:
        raise ValueError(f"names that are no names of folders: {strange}; write adapter.save(path) for each")
    unknown = options.keys() - {"overwrite", "is_main_process", "state_dict", "safe_serialization"}
    if unknown:
        raise TypeError(f"adapters are written without {sorted(unknown)}")
    if not options.get("is_main_process", True):
        return
    for name, loaded in tasks.items():
        assert loaded.adapter is not None  # said above
        loaded.adapter.save(folder / name, overwrite=bool(options.get("overwrite")))
