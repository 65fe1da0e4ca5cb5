import pytest

pytest.importorskip("triton", reason="needs Triton (pip install triton)")


def test_numerics_of_repeated_and_forked_launches_in_the_interpreter(interpret):
    interpret("launches")
