"""Imports go one way: a room imports rooms below it, and no file imports itself by way of others.

Those within functions count too: a loop that is hidden is a loop.  Between rooms even those for types only do; between
the files of one room they may go both ways, since nothing runs.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEAVES = ["devices", "files", "interrupts", "metrics", "services", "shapes", "sites", "sizes", "sums", "values", "warn"]

# from the lowest to the highest; rooms in one line import none of the others in it.  dts itself has every public name,
# each imported when it is first used, and knows who has what `dts.services` is asked for
ORDER = [
    ["dts_kernels", *[f"dts.{leaf}" for leaf in LEAVES]],
    ["dts.checkpoint", "dts.codec"],
    ["dts.adapter"],
    ["dts.merge", "dts.nn"],
    ["dts.exports", "dts.unseen"],
    ["dts.integrations"],
    ["dts.plan"],
    ["dts"],
    ["dts.demo", "dts.evaluate", "dts.serve"],
    ["dts.ray", "dts.vllm"],
    ["dts.cli"],
    ["dts.__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}

# what goes another way, and why
ROOM_EXCEPTIONS = {
    "dts.__version__": "the version stands where packaging looks for it; dts/__init__.py imports nothing heavy",
}


@cache
def modules() -> dict[str, Path]:
    """Every module of both packages."""
    found = {}
    for path in [*ROOT.glob("dts/**/*.py"), *ROOT.glob("dts_kernels/**/*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported(module: str, types: bool = True) -> tuple[str, ...]:
    """The names of this project that a module imports: modules, and names in them; types: also those for types only."""
    return tuple(_imported(module, types))


def _imported(module: str, types: bool) -> Iterator[str]:
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in ("dts", "dts_kernels"))
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            if origin.split(".")[0] in ("dts", "dts_kernels"):
                yield from (f"{origin}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str:
    """dts.nn.model.DTSModel -> dts.nn"""
    parts = name.split(".")
    room = parts[0] if parts[0] == "dts_kernels" else ".".join(parts[:2])
    return room if room in LEVEL else "dts"


def file_of(name: str) -> str:
    """The module that a name is in, or is."""
    while name not in modules():
        name = name.rpartition(".")[0]
    return name


def test_every_room_has_its_place():
    rooms = {room_of(module) for module in modules()}
    assert rooms <= set(LEVEL)
    assert not [module for module in modules() if room_of(module) == "dts" and module != "dts"]


@pytest.mark.parametrize("room", LEVEL)
def test_rooms_import_those_below(room):
    wrong = [
        f"{module} imports {name}"
        for module in modules()
        if room_of(module) == room
        for name in imported(module)
        if room_of(name) != room and LEVEL[room_of(name)] >= LEVEL[room] and name not in ROOM_EXCEPTIONS
    ]
    assert wrong == []


def loops() -> list[list[str]]:
    """Modules that import each other, by way of others or not: strongly connected parts of the graph of imports.

    ``from dts.nn import x`` counts for the file that x is: that a package's __init__ gathers its files is no loop.
    """
    names = {
        module: {gathered(name) for name in imported(module, types=False) if name not in ROOM_EXCEPTIONS} - {module}
        for module in modules()
    }
    reached = {module: set(names[module]) for module in names}
    for middle in names:  # Warshall's closure
        for module in names:
            if middle in reached[module]:
                reached[module] |= reached[middle]
    together = {frozenset(m for m in names if m in reached[module] and module in reached[m]) for module in names}
    return sorted(sorted(part) for part in together if len(part) > 1)


def gathered(name: str, depth: int = 5) -> str:
    """The file that a name comes from, through the __init__ that gathers it."""
    file = file_of(name)
    if name == file or depth == 0:
        return file
    wanted = name.removeprefix(file + ".").split(".")[0]
    for other in imported(file):
        if other.rpartition(".")[2] == wanted and modules()[file].name == "__init__.py":
            return gathered(other, depth - 1)
    return file


def test_no_file_imports_itself_by_way_of_others():
    assert loops() == []
