"""Codes, disk bytes and kernel words are exact inverses of each other, at any shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dts_kernels import PackedFactors, pack, unpack
from dts_kernels.layout import (
    VALUES,
    codes_to_rank_words,
    codes_to_words,
    from_kernel_layout,
    level_coefficients,
    rank_order,
    rank_words_in_memory,
    rank_words_of_memory,
    rank_words_shape,
    rank_words_size,
    rank_words_to_codes,
    to_kernel_layout,
    words_shape,
    words_to_codes,
)

SIZES = [0, 1, 3, 4, 5, 127, 128, 129, 2049]


def codes(*shape, seed=0):
    return torch.randint(0, 4, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def factors(m, n, k, levels=False):
    u, v = pack(codes(m, k)), pack(codes(n, k, seed=1))
    return PackedFactors(u, v, torch.rand(k), torch.randn(2, 4) if levels else None)


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_unpack_inverts_pack(rows, rank):
    given_codes = codes(rows, rank)
    packed = pack(given_codes)
    assert packed.shape == (rows, -(-rank // 4)) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, rank), given_codes)


def test_pack_puts_rank_4j_plus_i_in_bits_2i_of_byte_j():
    assert pack(torch.tensor([[1, 2, 3, 0, 2]], dtype=torch.uint8)).tolist() == [[1 | 2 << 2 | 3 << 4, 2]]


def test_pack_on_the_meta_device_has_the_shape():
    assert pack(torch.empty(5, 9, dtype=torch.uint8, device="meta")).shape == (5, 3)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 4), torch.zeros(4, dtype=torch.uint8)])
def test_pack_refuses_what_is_no_code_matrix(wrong):
    with pytest.raises(TypeError, match=r"uint8 \[rows, rank\]"):
        pack(wrong)


def test_unpack_refuses_bytes_of_another_rank():
    with pytest.raises(TypeError, match="rank 9"):
        unpack(torch.zeros(2, 2, dtype=torch.uint8), 9)


@pytest.mark.parametrize("contracted", SIZES)
@pytest.mark.parametrize("columns", [0, 1, 16, 17])
def test_words_are_inverted_exactly(contracted, columns):
    given_codes = codes(contracted, columns)
    words = codes_to_words(given_codes)
    assert words.dtype == torch.int32 and tuple(words.shape) == words_shape(contracted, columns)
    assert torch.equal(words_to_codes(words, contracted, columns), given_codes)


@pytest.mark.parametrize("rank", [*SIZES, 8, 9, 16, 24, 136, 137])
@pytest.mark.parametrize("columns", [0, 1, 16, 17])
def test_words_of_ranks_are_inverted_exactly_in_memory_too(rank, columns):
    given_codes = codes(rank, columns)
    words = codes_to_rank_words(given_codes)
    assert words.dtype == torch.int32 and tuple(words.shape) == rank_words_shape(rank, columns)
    assert torch.equal(rank_words_to_codes(words, rank, columns), given_codes)
    flat = rank_words_in_memory(words, rank)
    assert flat.numel() == rank_words_size(rank, columns) <= words.numel() and torch.equal(
        rank_words_of_memory(flat, rank, columns), words
    )


def test_sixteen_ranks_are_in_one_word_and_a_whole_128_side_by_side():
    given_codes = codes(156, 1)
    flat = rank_words_in_memory(codes_to_rank_words(given_codes), 156).tolist()
    assert len(flat) == 16 * 10
    for rank, code in enumerate(given_codes[:, 0].tolist()):
        row, (plane, half) = rank // 16, divmod(rank % 16, 2)
        word = flat[row if row < 8 else 128 + 16 * (row - 8)]  # column 0 of 16
        bits = [word >> (first + 2 * plane + 16 * half) % 32 & 1 for first in (15, 8)]
        assert 2 * bits[0] + bits[1] == code
    assert torch.equal(rank_order(256)[rank_order(256)], torch.arange(256))
    assert rank_order(128)[16 * 5 + 2 * 3 + 1] == 16 * 3 + 2 * 5 + 1


@settings(max_examples=30, deadline=None)
@given(m=st.integers(0, 40), n=st.integers(0, 300), k=st.integers(0, 150))
def test_words_made_from_bytes_are_those_of_the_definition(m, n, k):
    given_factors = factors(m, n, k)
    words = to_kernel_layout(given_factors)
    u, v = unpack(given_factors.u, k), unpack(given_factors.v, k)
    assert torch.equal(words.u, codes_to_rank_words(u.T)) and torch.equal(words.v, codes_to_words(v))


def test_every_code_sits_at_its_documented_bits():
    for k in range(128):
        plane, pair, half = k // 16, k % 16 // 2, k % 2
        one = torch.zeros(128, 16, dtype=torch.uint8)
        for code, bit in ((2, (15 + 2 * plane + 16 * half) % 32), (1, (8 + 2 * plane + 16 * half) % 32)):
            one[k, 5] = code
            words = codes_to_words(one)
            assert words[0, 5, pair].item() & 0xFFFFFFFF == 1 << bit
            assert (words != 0).sum() == 1


def test_a_turned_word_is_two_bf16_numbers():
    """All 65,536 half words: AND and OR give code values / 4 in bf16, in fp16 after moving the large bits once."""
    half_words, shifts = torch.arange(65536)[None], 2 * torch.arange(8)[:, None]
    given_codes = (half_words >> shifts & 3).to(torch.uint8)  # [plane, half word]
    tile = torch.zeros(8, 8, 2, 65536, dtype=torch.uint8)  # [plane, p, h, n]
    tile[:, 0, 0], tile[:, 0, 1] = given_codes, 3 - given_codes
    word = codes_to_words(tile.view(128, -1))[0, :, 0].to(torch.int64) & 0xFFFFFFFF
    turn = lambda w, by: (w >> by | w << (32 - by)) & 0xFFFFFFFF  # noqa: E731
    moved = turn(word, 29)
    low, high = word & 0x82828282 | moved & 0x7D7D7D7D, word & 0x28282828 | moved & 0xD7D7D7D7
    for plane in range(8):
        expected = [torch.tensor(VALUES)[c[plane].long()] / 4 for c in (given_codes, 3 - given_codes)]
        for source, mask, base, dtype in (
            (word, 0x81008100, 0x3E803E80, torch.bfloat16),
            (high if plane & 2 else low, 0x88008800, 0x34003400, torch.float16),
        ):
            pair = turn(source, 2 * plane) & mask | base
            for half, want in zip((pair & 0xFFFF, pair >> 16), expected):
                bits = torch.where(half >= 2**15, half - 2**16, half).to(torch.int16)
                assert torch.equal(bits.view(dtype).float(), want)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(0, 150), n=st.integers(0, 150), k=st.integers(0, 140), levels=st.booleans())
def test_kernel_layout_is_an_exact_inverse(m, n, k, levels):
    given_factors = factors(m, n, k, levels)
    words = to_kernel_layout(given_factors)
    assert words.shape == (m, n) and words.rank == k
    back = from_kernel_layout(words)
    for name in ("u", "v", "sigma", "levels"):
        one, other = getattr(back, name), getattr(given_factors, name)
        assert one is other if one is None else torch.equal(one, other)


def test_words_of_another_shape_are_refused_with_both_shapes():
    with pytest.raises(TypeError, match=r"\[1, 10, 8\].*\[16, 16\]"):
        words_to_codes(torch.zeros(16, 16, dtype=torch.int32), 100, 10)


@pytest.mark.parametrize("levels", [None, [0.011, 0.043, -0.009, -0.05], [1.0, 1.0, 1.0, 2.0]])
def test_level_coefficients_span_any_four_values(levels):
    levels = None if levels is None else torch.tensor(levels)
    f, g, b, one = level_coefficients(levels)
    values = [f * s * size + g * s * (1.25 - size) + b * size + one for s in (1, -1) for size in (0.25, 1)]
    wanted = torch.tensor(VALUES) if levels is None else levels
    torch.testing.assert_close(torch.tensor(values), wanted, rtol=1e-6, atol=1e-7)


def test_factors_that_do_not_fit_say_everything_at_once():
    with pytest.raises(ValueError, match="sigma.*u must.*v must.*levels"):
        PackedFactors(torch.zeros(3, 1), torch.zeros(3, 9, dtype=torch.uint8), torch.zeros(4).double(), torch.zeros(3))


def test_prefix_and_rows_are_slices_of_the_product():
    from dts_kernels.reference import reconstruct

    whole = factors(9, 13, 7)
    dense = reconstruct(whole)
    torch.testing.assert_close(reconstruct(whole.rows(2, 6)), dense[2:6])
    torch.testing.assert_close(reconstruct(whole.transpose()), dense.T)
    u, v = (unpack(side, 7).long() for side in (whole.u, whole.v))
    values = torch.tensor(VALUES)
    torch.testing.assert_close(reconstruct(whole.prefix(5)), (values[u] * whole.sigma)[:, :5] @ values[v].T[:5])
