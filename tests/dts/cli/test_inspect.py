"""What `dts inspect` says of matrices without components."""

import pytest

from dts.cli.inspect import _by_kind


@pytest.mark.parametrize("kind", ["factors", "experts"])
def test_samples_alone_count_in_the_error(kind):
    shared = {"kind": kind, "bytes": 8, "norm": 1.0}
    table = _by_kind([shared | {"rank": 4, "squared_error": 0.5}, shared | {"rank": 0, "squared_error": 40.5}])
    assert list(table.columns[-1].cells) == ["20.500"] and list(table.columns[-2].cells) == ["4 to 4"]
