"""FSDP2: parameters lie on all processes, and are put together for each forward; tasks are whole in each."""

from tests.dts.nn.parallel import cases
from tests.dts.nn.parallel.test_tensor_parallel import equal


def test_a_fully_sharded_llama(two, folder):
    for found in two(cases.sharded, folder):
        for when in ("before", "after"):
            equal(found[when])
            equal(found[f"{when} again"])
            assert found[f"{when} sent"] == found["base"] and found["base"]
            assert found[f"{when} words"]
            assert "merge_and_unload() needs whole weights" in found[f"{when} merged"]
        assert found["gradients"] < 1e-4
