"""What the roofline counts, against a count of every product by hand; the page has what was measured."""

import pytest

from benchmarks.kernels.roofline import counts, least, markdown
from tests.docs.pages import ROOT


def test_products_and_bytes_of_a_layer():
    # x [5, 6] V [6, 4], then t [5, 4] U^T [4, 8]; of every 4 columns (two groups) a row of 8 has an element
    need = counts(8, 6, rank=4, stride=4, rows=5, tasks=2, whole=False)
    assert need == {"digits": 5 * 6 * 4 + 5 * 4 * 8, "sampled": 5 * 8 * 2, "bytes": 2 * ((8 + 6) * 4 + 8 * 2) / 4}
    assert counts(8, 6, 4, None, 5, 1, False)["sampled"] == 0


def test_a_copy_of_the_weight_costs_the_same_for_any_rows():
    few, many = (counts(8, 6, 4, 4, rows, 1, True) for rows in (5, 500))
    assert few == many == {"digits": 8 * 6 * 4, "sampled": 8 * 2, "bytes": (14 * 4 + 16) / 4 + 12 * 48}


def test_each_resource_has_its_own_time():
    assert least({"digits": 60.0, "bytes": 8.0}, {"digits": 30.0, "bytes": 16.0}) == pytest.approx(
        {"digits": 2.0, "bytes": 0.5}
    )


@pytest.mark.parametrize("machine", ["amd-epyc", "intel-xeon"])
def test_the_page_has_what_was_measured(machine):
    assert markdown(ROOT / "benchmarks" / "results" / machine) in (ROOT / "docs" / "performance.md").read_text("utf-8")
