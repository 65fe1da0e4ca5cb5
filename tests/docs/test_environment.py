"""docs/environment.md has every variable that the code reads, and no other."""

import re

from tests.docs.pages import ROOT

READ = {  # files -> how a name looks there; the guards of C's headers are no variables
    r"\bDTS_[A-Z_]*[A-Z]\b": [*ROOT.glob("*.py"), ROOT / "Makefile", ROOT / ".ci" / "run"]
    + [path for folder in ("dts", "dts_kernels", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    + [path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "docs"],
    r'(?<=getenv\(")DTS_\w+': [*(ROOT / "dts_kernels").rglob("*.c"), *(ROOT / "dts_kernels").rglob("*.h")],
}


def test_every_variable_is_on_the_page_and_every_one_there_is_read():
    read = {
        name for look, files in READ.items() for file in files for name in re.findall(look, file.read_text("utf-8"))
    }
    page = set(re.findall(r"^\| `(DTS_\w+)` \|", (ROOT / "docs" / "environment.md").read_text("utf-8"), re.M))
    assert page == read and len(read) >= 6
