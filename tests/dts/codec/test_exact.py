"""Patches give every bit back, of any dtype; frames that are no such patch are refused."""

import sys

import numpy as np
import pytest
import torch

from dts.checkpoint.safetensors_file import DTYPES
from dts.codec import Undecodable, exact, frames
from dts.codec.exact import Patch, bits, check, decode, encode, equal_bits, same_bits


def anything(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Any bits at all: NaN of every kind, infinities, -0."""
    draw = torch.Generator().manual_seed(seed)
    top = 2 if dtype == torch.bool else 256
    return torch.randint(0, top, (count * dtype.itemsize,), dtype=torch.uint8, generator=draw).view(dtype)


def moved(share: float, dtype: torch.dtype = torch.bfloat16, count: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """(fine-tune, base) of which about this share differs."""
    base, other = anything(count, dtype, 1), anything(count, dtype, 2)
    value = base.clone()
    where = np.random.default_rng(3).random(count) < share
    bits(value)[where] = bits(other)[where]
    return value, base


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_every_bit_comes_back(dtype, share, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", 1000)  # several blocks, the last one shorter
    value, base = moved(share, dtype, 2500)
    patch = encode(value, base)
    check("a", patch, value.numel(), dtype.itemsize)
    assert patch.changed == value.numel() - equal_bits(value, base)
    assert same_bits(decode("a", patch, base), value)


@pytest.mark.parametrize("share, sparse", [(0.001, True), (0.3, True), (1.0, False)])
def test_the_smaller_form_is_stored(share, sparse):
    value, base = moved(share, count=20_000)
    patch, where = encode(value, base), np.flatnonzero(bits(value) != bits(base))
    everything = exact._framed(exact._zigzag(bits(value) - bits(base)))
    only = exact._framed(exact._zigzag((bits(value) - bits(base))[where]))
    gaps = exact._framed((np.diff(where, prepend=-1) - 1).astype(np.uint32))
    stored = sum(len(tensor) for tensor in patch.tensors.values())
    assert (patch.gaps is not None) == sparse and stored == min(len(everything), len(only) + len(gaps))


def test_zero_and_minus_zero_and_two_nans_differ_and_are_told_apart():
    zero, minus = torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])
    assert torch.equal(zero, minus) and not same_bits(zero, minus) and equal_bits(zero, minus) == 1
    assert np.signbit(decode("a", encode(minus, zero), zero).numpy()).tolist() == [True, False]
    quiet, other = (
        torch.tensor([pattern], dtype=torch.int32).view(torch.float32) for pattern in (0x7FC00000, 0x7FC00001)
    )
    assert same_bits(quiet, quiet.clone()) and not same_bits(quiet, other)
    assert same_bits(decode("a", encode(other, quiet), quiet), other)


def test_equal_tensors_need_no_patch_whatever_their_numbers():
    value = anything(100, torch.float16, 1)
    assert encode(value.clone(), value) is None and encode(torch.empty(0), torch.empty(0)) is None
    assert not same_bits(value, value.view(10, 10)) and not same_bits(value, value.view(torch.bfloat16))


def test_small_steps_up_and_down_take_the_fewest_bits():
    """The next number below and above are 1 and 2, also where a carry runs through the whole pattern."""
    base = torch.tensor([0x3F80, 0x3FFF, 0x4000, 0x0000], dtype=torch.int16).view(torch.bfloat16)
    value = torch.tensor([0x3F7F, 0x4000, 0x4001, -1], dtype=torch.int16).view(torch.bfloat16)
    assert exact._zigzag(bits(value) - bits(base)).tolist() == [1, 2, 2, 1]


def test_tensors_that_are_not_contiguous_are_taken_as_they_look():
    base = torch.arange(12.0).view(3, 4).T
    value = base.clone()
    value[1, 2] = -5
    assert same_bits(decode("a", encode(value, base), base), value)


def refused(patch: Patch, base: torch.Tensor, match: str) -> None:
    with pytest.raises(Undecodable, match=match):
        check("a", patch, base.numel(), base.dtype.itemsize)
        decode("a", patch, base)


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_a_stream_that_is_cut_off_anywhere_is_refused_before_it_is_decoded(share, monkeypatch):
    value, base = moved(share, count=400)
    patch = encode(value, base)
    for end in range(len(patch.changes)):
        with pytest.raises(Undecodable):
            check("a", Patch(patch.changed, patch.changes[:end].clone(), patch.gaps), base.numel(), 2)
    longer = torch.cat([patch.changes, patch.changes])
    refused(Patch(patch.changed, longer, patch.gaps), base, "behind its end")


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_a_damaged_stream_is_refused_or_gives_what_it_gave(share):
    value, base = moved(share, count=200)
    patch = encode(value, base)
    found = tried = 0
    for name, tensor in patch.tensors.items():
        for place in range(len(tensor)):
            for bit in (0, 3, 7):
                damaged, tried = tensor.clone(), tried + 1
                damaged[place] ^= 1 << bit
                try:
                    made = Patch(patch.changed, **(patch.tensors | {name: damaged}))
                    check("a", made, base.numel(), 2)
                    assert same_bits(decode("a", made, base), value)
                except Undecodable:
                    found += 1
    assert found > 0.98 * tried  # a bit of a header is not read


def test_a_bomb_is_refused_by_its_headers():
    """A frame may say and hold no more than belongs, however little it takes."""
    base = torch.zeros(1000, dtype=torch.bfloat16)
    zeros = frames.framed((bytes(1 << 20) for _ in range(64)), 64 << 20)
    assert len(zeros) < 10_000
    refused(Patch(1000, zeros), base, "67108864 bytes, where 2000 belong")
    unsaid = frames.zstd().ZstdCompressor(write_content_size=False, write_checksum=True).compress(bytes(64 << 20))
    refused(Patch(1000, torch.frombuffer(bytearray(unsaid), dtype=torch.uint8)), base, "where 2000 belong")


def test_a_window_that_needs_much_memory_is_refused():
    library = frames.zstd()
    parameters = library.ZstdCompressionParameters.from_level(3, window_log=27, write_checksum=True)
    writer = library.ZstdCompressor(compression_params=parameters).compressobj(size=64 << 20)
    content = writer.compress(bytes(64 << 20)) + writer.flush()
    stored = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    with pytest.raises(Undecodable, match="another kind"):
        frames.Frame("a", stored, 64 << 20)


def test_elements_beyond_the_tensor_and_wrong_counts_are_refused():
    value, base = moved(0.05)
    patch = encode(value, base)
    far = exact._framed(np.full(patch.changed, 2**32 - 1, np.uint32))
    refused(Patch(patch.changed, patch.changes, far), base, "of 3000 is said to have changed")
    refused(Patch(0, patch.changes, patch.gaps), base, "cannot have changed")
    refused(Patch(3001, patch.changes, patch.gaps), base, "cannot have changed")
    refused(Patch(patch.changed - 1, patch.changes, patch.gaps), base, "bytes, where")
    nothing = exact._framed(np.zeros(patch.changed, np.uint16))
    refused(Patch(patch.changed, nothing, patch.gaps), base, "0 elements changed")
    whole = encode(*moved(1.0))
    refused(Patch(whole.changed - 1, whole.changes), base, f"{whole.changed} elements changed")


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match=r"dts-merge\[exact\]"):
        encode(*moved(0.5))
