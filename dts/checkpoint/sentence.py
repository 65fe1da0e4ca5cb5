"""sentence-transformers folders: modules.json names a chain of modules, each in a folder with weights of its own.

The first module that has weights (the transformer) keeps the names its file has, so that it is compared with a plain
transformer by name; the tensors of any other start with its folder: ``2_Dense.linear.weight``.
"""

import re
from pathlib import Path

from dts.checkpoint.checkpoint import Checkpoint
from dts.checkpoint.errors import CheckpointError, some
from dts.checkpoint.folder import from_folder, has_weights, read_weights, relative_files
from dts.checkpoint.index import is_inside
from dts.checkpoint.json_file import json_object, read_json

MODULES = "modules.json"
TOP_FILES = (MODULES, "config_sentence_transformers.json", "sentence_*_config.json")
MODULE_FILES = ("*.json", "*.txt")  # of modules other than the transformer: configs, vocabularies, word weights


def from_modules(folder: Path, variant: str | None = None) -> Checkpoint:
    """All modules' tensors as one checkpoint, with ``parts`` and ``files`` for writing them back.

    Raises CheckpointError for a damaged modules.json and for folders of weights that it does not name.
    """
    places = [place for path in _paths(folder) for place in _nested(folder, path)]
    unnamed = [
        p.name
        for p in sorted(folder.iterdir())
        if re.fullmatch(r"\d+_\w+", p.name)
        and p.name not in {place.split("/")[0] for place in places}
        and p.is_dir()
        and has_weights(p)
    ]
    if "" not in places and has_weights(folder):
        unnamed.insert(0, "its own weights")
    if unnamed:
        raise CheckpointError(f"{folder} has weights that its modules.json does not name: {some(unnamed)}")
    held = [place for place in places if has_weights(folder / place)]
    if not held:
        return from_folder(folder, variant)  # raises with what there is
    checkpoint = from_folder(folder / held[0], variant)
    first = checkpoint.folder or folder
    checkpoint.parts = {held[0]: ""}
    for place in held[1:]:
        prefix = prefix_of(place)
        part = read_weights(folder / place)
        checkpoint.parts[place] = prefix
        clash = [name for name in part.tensors if prefix + name in checkpoint.tensors]
        if clash:
            raise CheckpointError(f"{folder} has two tensors of one name: {some(prefix + name for name in clash)}")
        checkpoint.tensors |= {prefix + name: tensor for name, tensor in part.tensors.items()}
        checkpoint.tied |= {prefix + name: prefix + other for name, other in part.tied.items()}
        checkpoint.notes += part.notes
    checkpoint.files = relative_files(folder, TOP_FILES)
    if first != folder:  # of the transformer, whose other files are those of any transformer
        checkpoint.files |= {f"{held[0]}/{name}": path for name, path in relative_files(first, TOP_FILES[2:]).items()}
    for place in places:
        if folder / place not in (folder, first):
            found = relative_files(folder / place, MODULE_FILES)
            checkpoint.files |= {f"{place}/{name}": path for name, path in found.items()}
    checkpoint.source, checkpoint.folder = str(folder), first
    return checkpoint


def prefix_of(place: str) -> str:
    """What the names of the tensors of a module in this folder start with, if it is not the first."""
    return place.replace("/", ".") + "."


def _paths(folder: Path) -> list[str]:
    modules = read_json(folder / "modules.json")
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("path"), str) and isinstance(m.get("type"), str) for m in modules
    ):
        raise CheckpointError(f"{folder / 'modules.json'} is damaged: it is no list of modules with a path and a type")
    paths = [m["path"] for m in modules]
    outside = [path for path in paths if path and not is_inside(path)]
    if outside:
        raise CheckpointError(f"{folder / 'modules.json'} names places outside of its folder: {some(outside)}")
    return [path.strip("/").removeprefix("./").rstrip(".") for path in paths]


def _nested(folder: Path, path: str) -> list[str]:
    """A module's folder, and those of the modules inside it where it is a router (or Asym, as it was called)."""
    for name in ("router_config.json", "config.json"):
        file = folder / path / name
        types = json_object(file).get("types") if file.is_file() else None
        if isinstance(types, dict):
            outside = [key for key in types if not is_inside(key)]
            if outside:
                raise CheckpointError(f"{file} names places outside of its folder: {some(outside)}")
            inner = [place for key in types for place in _nested(folder, f"{path}/{key}".strip("/"))]
            return [path, *inner]
    return [path]
