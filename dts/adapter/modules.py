"""Folders of sentence-transformers: a model in several modules, each with a folder of its own.

``modules.json`` names the folders; a tensor of the module in folder ``2_Dense`` is called ``2_Dense.<its name there>``.
"""

import json
from pathlib import Path, PurePosixPath

MODULES = "modules.json"
FILES = (MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")


def module_folders(modules) -> list[str]:
    """Folders of the modules that do not lie in the model's own; modules: the content of ``modules.json``."""
    rows = modules if isinstance(modules, list) else []
    paths = [row.get("path") for row in rows if isinstance(row, dict)]
    return [path for path in paths if isinstance(path, str) and path and PurePosixPath(path).name == path != ".."]


def module_files(folder: Path | None) -> dict[str, object]:
    """{path in the folder: content} of the JSON files that say what the modules are; {} if the model has none."""
    if folder is None or not (folder / MODULES).is_file():
        return {}
    inner = module_folders(_json(folder / MODULES))
    files = [folder / name for name in FILES if (folder / name).is_file()]
    files += [file for name in inner for file in sorted((folder / name).glob("*.json"))
              if not file.name.endswith(".index.json")]  # fmt: skip
    return {file.relative_to(folder).as_posix(): _json(file) for file in files}


def _json(file: Path):
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def plain(files) -> bool:
    """Is this {path: content} of files that each belong to a module of the model, and lie nowhere else?"""
    if not isinstance(files, dict):
        return False
    allowed = set(module_folders(files.get(MODULES)))

    def belongs(name: str) -> bool:
        parts = PurePosixPath(name).parts
        inner = len(parts) == 2 and "/".join(parts) == name and parts[0] in allowed and name.endswith(".json")
        return (name in FILES or inner) and not any(c in "\\:" or not c.isprintable() for c in name)

    return all(map(belongs, files))


def write_module_files(files: dict[str, object], out: Path) -> None:
    """Raises ValueError for a file that belongs to no module: an adapter may come from anywhere."""
    if not plain(files):
        raise ValueError(f"the adapter carries a file that belongs to no module of its model, among {', '.join(files)}")
    for name, content in files.items():
        file = out / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def by_folder(names: list[str], folders: list[str]) -> dict[str, dict[str, str]]:
    """folder ("" for the model's own) -> {name in its file: name}."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        folder = next((f for f in folders if name.startswith(f + ".")), "")
        groups.setdefault(folder, {})[name[len(folder) + 1 :] if folder else name] = name
    return groups
