"""Code that a model's folder has (``trust_remote_code``): the base's goes into what is made of it, an adapter has none.

A config names its classes in ``auto_map``: {"AutoModel": "modeling_x.XModel"} is in ``modeling_x.py`` beside it,
"org/name--modeling_x.XModel" in a hub's.  An adapter may come from anyone, so what its config names is taken only where
the base's own config names the same module.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from dts.checkpoint import Checkpoint


class OtherCode(UserWarning):
    """A fine-tune's code that is not its base's: adapters carry none."""


def _references(auto_map: dict) -> Iterator[tuple[str, str]]:
    """(module, where it is: "" beside the config, or "org/name--") of all classes that are named."""
    for value in auto_map.values():
        for reference in value if isinstance(value, list | tuple) else [value]:
            if isinstance(reference, str):
                place, dashes, name = reference.rpartition("--")
                yield name.rpartition(".")[0], place + dashes


def modules_of(config: dict | None) -> dict[str, str]:
    """Module -> where it is, of a config; empty where transformers has the classes."""
    return dict(_references((config or {}).get("auto_map") or {}))


def with_code_of(base: dict | None, config: dict | None) -> dict | None:
    """A config with its ``auto_map`` as far as that names the base's modules, where the base's config says they are."""
    if not config or "auto_map" not in config:
        return config
    known, auto_map = modules_of(base), {}
    for key, value in config["auto_map"].items():
        many = isinstance(value, list | tuple)
        named = [_placed(reference, known) for reference in (value if many else [value])]
        if any(named):
            auto_map[key] = named if many else named[0]
    rest = {key: value for key, value in config.items() if key != "auto_map"}
    return rest | ({"auto_map": auto_map} if auto_map else {})


def _placed(reference, known: dict[str, str]) -> str | None:
    name = reference.rpartition("--")[2] if isinstance(reference, str) else ""
    module = name.rpartition(".")[0]
    return known[module] + name if module in known else None


def code_files(base: Checkpoint) -> list[Path]:
    """The base's own files of code, where its config names one of them."""
    if base.folder is None or "" not in modules_of(base.config).values():
        return []
    return sorted(file for file in base.folder.glob("*.py") if file.is_file())


def copy_code(base: Checkpoint, folder: Path) -> None:
    for file in code_files(base):
        shutil.copyfile(file, folder / file.name)


def other_code(base: Checkpoint, finetuned: Checkpoint) -> str | None:
    """What to know where the fine-tune's code is not the base's; None where it is, or where there is none."""
    known, held = modules_of(base.config), {file.name: file.read_bytes() for file in code_files(base)}
    other = {
        file.name
        for file in code_files(finetuned)
        if not known.get(file.stem) and held.get(file.name) != file.read_bytes()
    }
    other |= {f"{place}{module}" for module, place in modules_of(finetuned.config).items() if module not in known}
    if not other:
        return None
    names = ", ".join(sorted(other))
    return (
        f"{finetuned.source} has code that is not the base's ({names}), and an adapter carries none: "
        "models made of it run the base's.  Add these files to the base's folder, and name them in its config.json, if "
        "they are needed"
    )
