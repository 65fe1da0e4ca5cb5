"""docs/architecture.md and the pages beside it name files that are there."""

import re

import pytest

from tests.docs.pages import ROOT, name_of

PAGES = [ROOT / "docs" / f"{name}.md" for name in ("architecture", "method", "kernels", "glossary")]
PAGES.append(ROOT / "CONTRIBUTING.md")
FILE = re.compile(r"(?:dts|dts_kernels|tests|benchmarks|docs|examples)/[\w./-]*\w")


@pytest.mark.skipif(not (ROOT / "dts_kernels" / "backends").is_dir(), reason="the rooms that the page names come next")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_are_there(page):
    named = {one for code in re.findall(r"`([^`\n]+)`", page.read_text("utf-8")) for one in FILE.findall(code)}
    missing = sorted(one for one in named if not (ROOT / one).exists() and "<" not in one)
    assert not missing


def test_every_room_is_in_the_table():
    table = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("## Rooms")[1].split("## Adding")[0]
    rooms = {f"dts/{path.name}" for path in (ROOT / "dts").iterdir() if (path / "__init__.py").is_file()}
    rooms |= {f"dts/{path.name}" for path in (ROOT / "dts").glob("*.py") if not path.name.startswith("__")}
    assert not sorted(room for room in rooms if f"`{room}`" not in table)
