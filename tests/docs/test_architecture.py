"""docs/architecture.md is true: the files that it and other pages name are there, and imports go down its list."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, name_of

ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("architecture", "method", "kernels", "glossary")]
PAGES.append(ROOT / "CONTRIBUTING.md")
FILE = re.compile(r"(?<![\w/])(?:dts|dts_kernels|tests|benchmarks|docs|examples)/[\w./-]*\w")
FRONT = {"dts.__init__", "dts.__main__"}  # a package's front may name all of its rooms


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_are_there(page):
    named = set(FILE.findall(re.sub(r"\w*<\w+>[\w.]*", "", page.read_text("utf-8"))))
    missing = sorted(one for one in named if not (ROOT / one).exists())
    assert not missing


def rooms() -> list[str]:
    """Modules and packages as the table has them, the highest first: "dts.cli", "dts_kernels.ops"."""
    table = ARCHITECTURE.read_text("utf-8").split("## Rooms")[1].split("## Adding")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    return [name.removesuffix(".py").replace("/", ".") for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_room_is_in_the_table():
    there = {f"dts.{path.name}" for path in (ROOT / "dts").iterdir() if (path / "__init__.py").is_file()}
    there |= {f"dts.{path.stem}" for path in (ROOT / "dts").glob("*.py")} - FRONT
    assert not sorted(there - set(rooms()))


def imported(file: Path) -> set[str]:
    """Names of modules that a file imports when it runs, inside functions too, but not for types alone."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    tree, names = ast.parse(file.read_text("utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join(above + [node.module] * bool(node.module))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str, known: list[str]) -> str | None:
    """The most particular room that a module is in."""
    return max((room for room in known if f"{module}.".startswith(f"{room}.")), key=len, default=None)


def test_imports_go_down_the_list():
    known = [room for room in rooms() if room.startswith("dts.")]
    wrong = set()
    for file in (ROOT / "dts").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        own = room_of(module, known)
        for name in imported(file) if own else ():
            other = room_of(name, known)
            if other and known.index(other) < known.index(own):
                wrong.add(f"{module} imports {name}")
    assert not sorted(wrong)


def test_the_kernels_know_nothing_of_models():
    files = (ROOT / "dts_kernels").rglob("*.py")
    assert not [file for file in files if any(name.split(".")[0] == "dts" for name in imported(file))]
