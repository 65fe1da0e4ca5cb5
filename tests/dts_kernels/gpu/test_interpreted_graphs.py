import pytest

pytest.importorskip("triton", reason="needs Triton (pip install triton)")


def test_one_launch_for_layers_that_share_an_input_in_the_interpreter(interpret):
    interpret("graphs")
