"""The figures behind a prediction are the measured ones."""

import json
from pathlib import Path
from statistics import mean

import pytest

from dts.adapter.expected import MEASURED, TASKS, expected_agreement, in_words, span

ROWS = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "quality"


@pytest.mark.parametrize("suite", TASKS)
@pytest.mark.parametrize("method", MEASURED)
def test_the_table_is_that_of_the_measured_rows(method, suite):
    given = json.loads((ROWS / f"{suite}.json").read_text("utf-8"))
    rows = [dict(zip(given["columns"], row)) for row in given["rows"]]
    rows = [row for row in rows if not row.get("processor")]  # fine-tunes of the suite, not those trained elsewhere
    own = [row for row in rows if row["method"] == {"paper": "dts paper"}.get(method, method)]
    sizes = {row["size"] for row in own if method != "sketch" or row["size"] > 0.002}
    each = [[row for row in own if row["size"] == size] for size in sizes]
    found = sorted((mean(r["squared_error"] for r in some), mean(r["agreement"] for r in some)) for some in each)
    assert len(found) >= 3 and len({row["task"] for row in own}) == TASKS[suite]
    assert [pair for pair in MEASURED[method][suite]] == [pytest.approx(pair, abs=1e-3) for pair in found]


def test_between_the_points_and_beyond_them():
    (low, at_low), (high, at_high), *_ = MEASURED["residual"]["text"]
    assert expected_agreement("residual", low)["text"] == at_low
    assert expected_agreement("residual", (low + high) / 2)["text"] == pytest.approx((at_low + at_high) / 2)
    assert expected_agreement("residual", 1e-9)["text"] == at_low
    assert expected_agreement("residual", 0.0) is None  # a mixture, say, of which nothing is missing
    assert expected_agreement("residual", 0.7).keys() == {"images"} and expected_agreement("residual", 0.95) is None
    assert expected_agreement("mixture", 0.1) is None and expected_agreement("sketch", None) is None


def test_a_prediction_is_called_one():
    said = in_words("residual", 0.242)
    assert "about 96 to 98 % of inputs, predicted from 24 tasks" in said and "dts eval measures" in said
    assert span("residual", 0.001) == "at least 98 to 99 %" and span("residual", 0.7) == "about 79 %"
    assert in_words("residual", 0.99) is None and span("mixture", 0.1) is None
    assert all("100" not in span(method, 1e-9) for method in MEASURED)
