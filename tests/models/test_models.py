"""Every family of the table answers as its dense models do; those that do not are known, by reason."""

import pytest

pytest.importorskip("transformers")

from tests.models import found  # noqa: E402
from tests.models.check import check  # noqa: E402
from tests.models.page import PAGE, page  # noqa: E402
from tests.models.table import FAST, ROWS  # noqa: E402


def parameters(row):
    marks = [] if row.name in FAST else [pytest.mark.models]
    if row.fails:
        marks.append(pytest.mark.xfail(strict=True, reason=row.fails))
    return pytest.param(row, id=row.name, marks=marks)


@pytest.mark.parametrize("row", [parameters(row) for row in ROWS])
def test_a_family(row, tmp_path):
    if row.library not in found.here():
        pytest.skip(f"{row.library} is not installed; `make models` does that")
    outcome = check(row, tmp_path)
    versions = found.written_with()
    if versions.get(row.library) == found.here()[row.library]:
        was = found.read()[row.name]
        assert found.of(row, outcome) == was, "another way than docs/models.md says: run python -m tests.models"


def test_the_page_is_of_this_table():
    """`python -m tests.models` writes it."""
    assert PAGE.read_text("utf-8") == page(ROWS, found.read(), found.written_with())


def test_the_table_is_as_long_as_it_says():
    assert len(ROWS) == len({row.name for row in ROWS}) >= 80
    assert sum(bool(row.fails) for row in ROWS) <= 5
    assert set(FAST) <= {row.name for row in ROWS}
