"""Models in several modules (sentence-transformers): what an adapter carries of them, and how it is written.

``{"files": {place in the folder: content}, "parts": {module's folder: what its tensors' names start with}}``, both as
`dts.checkpoint.sentence` read them; empty for a model in one piece.
"""

import json
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from dts.checkpoint import Checkpoint, CheckpointError
from dts.checkpoint.index import is_inside
from dts.checkpoint.sentence import MODULES, TOP_FILES, prefix_of


def modules_of(model: Checkpoint) -> dict[str, dict]:
    """JSON files as what they hold, others as text.  Raises CheckpointError for a damaged one."""
    return {"files": {place: _content(path) for place, path in model.files.items()}, "parts": dict(model.parts)}


def differing_modules(base: Checkpoint, finetuned: Checkpoint) -> dict[str, dict] | None:
    """The fine-tune's, where it is not the base's; of one in memory nothing is known."""
    if finetuned.folder is None:
        return None
    ours = modules_of(finetuned)
    return None if ours == modules_of(base) else ours


def _content(path: Path):
    try:
        text = path.read_text("utf-8")
        return json.loads(text) if path.suffix == ".json" else text
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def harmless(value) -> bool:
    """Is it `plain`, with classes of that library and of torch alone, so that no other code is named?"""
    if not plain(value):
        return False
    files = value["files"]
    rows = files.get(MODULES)
    kinds = [row["type"] for row in rows if isinstance(row, dict) and "type" in row] if isinstance(rows, list) else []
    contents = [content for content in files.values() if isinstance(content, dict)]
    functions = [content["activation_function"] for content in contents if "activation_function" in content]
    return (
        all(isinstance(kind, str) and kind.startswith("sentence_transformers.") for kind in kinds)
        and all(isinstance(function, str) and function.startswith("torch.nn.") for function in functions)
        and not any("auto_map" in content for content in contents)
    )


def plain(modules) -> bool:
    """Are these modules of which every file belongs to a module of the model, so that none lies anywhere else?"""
    if not isinstance(modules, dict) or modules.keys() != {"files", "parts"}:
        return False
    files, parts = modules["files"], modules["parts"]
    if not isinstance(files, dict) or not isinstance(parts, dict):
        return False
    listed = files.get(MODULES)
    rows = listed if isinstance(listed, list) else []
    paths = [row.get("path") for row in rows if isinstance(row, dict)]
    tops = [path.strip("/") for path in paths if isinstance(path, str) and path and _safe(path)]

    def of_module(place: str) -> bool:
        return _safe(place) and any(place == top or place.startswith(top + "/") for top in tops)

    def file(name: str, content) -> bool:
        if not _safe(name) or name.endswith(".index.json"):
            return False
        if of_module(str(PurePosixPath(name).parent)):
            return name.endswith(".json") or name.endswith(".txt") and isinstance(content, str)
        return "/" not in name and any(fnmatchcase(name, pattern) for pattern in TOP_FILES)

    def part(place: str, prefix) -> bool:
        return (place == "" or of_module(place)) and prefix in (("",) if place == "" else ("", prefix_of(place)))

    own = list(parts.values()).count("")
    return (
        all(file(*item) for item in files.items())
        and all(part(*item) for item in parts.items())
        and own == bool(parts)
        and (not files or MODULES in files)
    )


def _safe(place) -> bool:
    """Is it one way to write a place below the folder, on every system?"""
    return (
        isinstance(place, str)
        and place != ""
        and is_inside(place)
        and place.isprintable()
        and str(PurePosixPath(place)) == place
        and place != "."
    )


def write_modules(modules: dict[str, dict], out: Path) -> None:
    """Raises ValueError for a file that belongs to no module: an adapter may come from anywhere."""
    if not plain(modules):
        raise ValueError(
            "the adapter carries a file that belongs to no module of its model, among "
            f"{', '.join(modules.get('files', ()))}"
        )
    for name, content in modules["files"].items():
        file = out / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n" if name.endswith(".json") else content
        file.write_text(text, "utf-8")


def by_part(model: Checkpoint, names: list[str]) -> dict[str, dict[str, str]]:
    """module's folder ("" for the model's own) -> {name in its file: name}."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        folder, inner = model.part_of(name)
        groups.setdefault(folder, {})[inner] = name
    return groups
