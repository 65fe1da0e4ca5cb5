import pytest

pytest.importorskip("triton", reason="needs Triton (pip install triton)")


def test_numerics_of_components_in_the_interpreter(interpret):
    interpret("components")
