"""The tensors in a file of blobs."""

from types import SimpleNamespace

import torch

from dts.adapter.packed import Blobs, Slice


def blobs_of(*tensors):
    """(what gives them, the one blob that holds them); tensors: (name, shape), uint8."""
    slices, end = {}, 0
    for name, shape in tensors:
        size = torch.Size(shape).numel()
        slices[name], end = Slice(torch.uint8, shape, end, end + size), end + size
    blob = torch.arange(end, dtype=torch.uint8)
    file = SimpleNamespace(tensors={"U8": SimpleNamespace(start=0, stop=end)}, load=lambda name: blob)
    return Blobs(file, slices), blob


def test_factors_that_lie_as_they_should_are_not_copied():
    stored, blob = blobs_of(("a.u", (4, 4)), ("a.v", (8, 4)))
    for key, first in (("a.u", 0), ("a.v", 16)):
        own = stored.load(key)
        assert own.data_ptr() == blob.data_ptr() + first and own.untyped_storage().nbytes() == 48
        assert torch.equal(own.flatten(), blob[first : first + own.numel()])


def test_vectors_in_few_bits_lie_beside_factors():
    """As models compute with them."""
    stored, blob = blobs_of(("a.u", (4, 4)), ("b.delta", (16,)))
    assert {stored.load(name).untyped_storage().data_ptr() for name in ("a.u", "b.delta")} == {blob.data_ptr()}
    assert torch.equal(stored.load("b.delta"), blob[16:])


def test_others_share_a_memory_with_nothing_else_in_it():
    for tensors in (
        [("a.u", (4, 4)), ("a.v", (5, 1))],  # which does not end where a third would begin
        [("a.u", (5, 1)), ("a.v", (4, 4))],
        [("a.u", (4, 4)), ("b.value", (16,)), ("a.v", (4, 4))],
        [("a.u", (4, 4)), ("a.v", (4, 4)), ("b.value", (16,))],
        [("b.value", (11,)), ("a.u", (5, 1))],  # 16 bytes of both, as of the one in its own memory
    ):
        stored, blob = blobs_of(*tensors)
        factors = {name: stored.load(name) for name, _ in tensors if name != "b.value"}
        (memory,) = {one.untyped_storage().data_ptr() for one in factors.values()}
        assert memory != blob.data_ptr()
        for name, one in factors.items():
            assert one.data_ptr() % 16 == memory % 16
            assert bytes(one.flatten().tolist()) == bytes(stored.content(name))
