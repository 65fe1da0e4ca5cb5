"""An arena: runs stay where they are, offsets lead to them and nowhere else, what goes leaves its memory."""

import copy
import gc
import pickle

import pytest
import torch

from dts_kernels.arena import ALIGN, GRAIN, Arena, piece, pieces

DTYPES = [torch.int32, torch.uint8]


def values(size, dtype, seed=0):
    return torch.randint(0, 100, (size,), dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_moves_while_runs_come_and_go(dtype):
    arena, wanted = Arena(dtype, "cpu"), {}
    places = {}
    for step in range(200):
        slot, size = step * 7 % 23, 1 + step * 131 % 5000
        wanted[slot] = values(size, dtype, step)
        places[slot] = arena.put(slot, wanted[slot])
        if step % 5 == 4:
            arena.drop(slot)
            del wanted[slot], places[slot]
        for other, own in wanted.items():
            assert arena.taken[other][0] == places[other] and places[other] % ALIGN == 0
            assert torch.equal(piece(arena.tensor, places[other], own.numel()), own)
    for slot in list(wanted):
        arena.drop(slot)
    assert arena.chunks == [] and arena.nbytes == GRAIN


def test_what_goes_is_room_for_the_next():
    arena = Arena(torch.uint8, "cpu")
    for slot in range(100):
        arena.put(slot, values(3000, torch.uint8))
    size = arena.nbytes
    assert size <= 1.05 * 100 * 3000 + GRAIN and len(arena.chunks) < 90  # many runs do not make as many chunks
    for slot in range(0, 100, 3):
        arena.put(slot, values(2990, torch.uint8))
    assert arena.nbytes <= size
    arena.drop(1)
    arena.put(500, values(3000, torch.uint8))
    assert arena.nbytes <= size


def test_reserved_room_stays_when_it_is_empty_and_is_made_once():
    arena = Arena(torch.int32, "cpu")
    arena.put(0, values(100, torch.int32))
    for _ in range(3):
        arena.reserve(4, 1001)
    size, chunks = arena.nbytes, list(arena.chunks)
    for _ in range(2):
        for slot in range(1, 5):
            arena.put(slot, values(1001, torch.int32))
        assert arena.nbytes == size and all(a is b for a, b in zip(arena.chunks, chunks, strict=True))
        for slot in range(1, 5):
            arena.drop(slot)
    arena.reserve(5, 1001)
    assert size < arena.nbytes <= size + 4 * 1008 + GRAIN


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_has_memory_of_its_own(how):
    arena = Arena(torch.int32, "cpu")
    arena.reserve(2, 50)
    for slot in range(5):
        arena.put(slot, values(100 * slot + 1, torch.int32, slot))
    twin = copy.deepcopy(arena) if how == "deepcopy" else pickle.loads(pickle.dumps(arena))
    for slot in range(5):
        arena.view(arena.taken[slot][0], 100 * slot + 1).zero_()
    for slot in range(5):
        assert torch.equal(twin.view(twin.taken[slot][0], 100 * slot + 1), values(100 * slot + 1, torch.int32, slot))
        twin.drop(slot)
    assert [chunk.data_ptr() for chunk in twin.chunks] == list(twin.kept) and len(arena.chunks) > len(twin.chunks) == 1


def test_offsets_lead_to_the_arenas_own_memory_and_nowhere_else():
    arena, other = Arena(torch.int32, "cpu"), Arena(torch.int32, "cpu")
    start, foreign = arena.put(0, values(100, torch.int32)), other.put(0, values(100, torch.int32))
    at = foreign + (other.tensor.data_ptr() - arena.tensor.data_ptr()) // 4  # of the other's run from this anchor
    size = arena.chunks[0].numel()
    assert piece(arena.tensor, start, size).numel() == size
    floats = piece(arena.tensor.view(torch.float32), start, 100)  # the same memory whatever its numbers are
    assert torch.equal(floats.view(torch.int32), values(100, torch.int32))
    for wrong in ((start - 1, 5), (start, size + 1), (at, 100), (-1, 1), (10**15, 1)):
        with pytest.raises(ValueError, match="no memory of the bank"):
            piece(arena.tensor, *wrong)
    with pytest.raises(ValueError):
        piece(arena.tensor.clone(), start, 100)
    assert len(list(pieces(arena.tensor.clone()))) == 1


def test_an_arena_that_is_gone_leaves_nothing_behind():
    arena = Arena(torch.int32, "cpu")
    arena.put(0, values(100, torch.int32))
    anchor = arena.tensor
    del arena
    gc.collect()
    assert len(list(pieces(anchor))) == 1
