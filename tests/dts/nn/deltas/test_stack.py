"""What a table of heads takes of memory: as much as they have, whatever sizes the others are of."""

import copy
import pickle

import pytest
import torch

from dts.nn.deltas import Table
from dts.nn.deltas.head import head
from dts.nn.deltas.per_task import per_task_product
from dts_kernels import Routing

SIZES = {0: 3, 2: 50, 3: 3, **dict.fromkeys(range(4, 14), 4)}
MIXTURES = [{2: 1.0}], [{0: 1.0}, {2: 1.0}, {5: 0.5, 3: 0.25}], [{1: 1.0}], [{}, {2: 0.5}, {13: 1.0}]


@pytest.fixture(params=[len(SIZES), 3], ids=["many", "few"])
def heads(request):
    """(table, bytes of what is in it): weights among numbers that are not theirs, as in a file."""
    table, file = Table(), torch.randn(64, 7, generator=torch.Generator().manual_seed(0))
    for slot, size in list(SIZES.items())[: request.param]:
        table.add(slot, file[:size] * (1 + slot) if slot % 2 else file[:size])
    return table, sum(size * 7 * 4 for size in list(SIZES.values())[: request.param])


def answers(table):
    x = torch.linspace(-1, 1, 2 * 3 * 7).view(3, 2, 7)
    bias = Table()
    for slot in table.slots:
        bias.add(slot, torch.full((SIZES[slot],), float(slot)))
    found = []
    for mixtures in MIXTURES:
        routing = Routing.of(mixtures)
        rows = x[:1] if len(mixtures) == 1 else x
        found += [per_task_product(rows, table, routing), table.lengths(routing)]
        found += [head(rows, table, bias, routing, torch.float32, padding=True)]
    return found


@torch.no_grad()
def test_heads_of_several_sizes_take_no_more_than_they_have(heads):
    table, nbytes = heads
    found = answers(table)
    memory = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in table.held()}
    assert sum(memory.values()) == nbytes
    assert [t.shape[0] for t in table.tensors.values()] == [SIZES[slot] for slot in table.slots]
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert sum(t.nbytes for t in other.held()) == nbytes
        torch.testing.assert_close(answers(other), found, rtol=0, atol=0)
    assert table.stack.shape == (max(table.slots) + 1, 50, 7)  # of who asks for it
    torch.testing.assert_close(answers(table), found, rtol=0, atol=0)


@torch.no_grad()
def test_others_come_and_go_beside_them(heads):
    table, _ = heads
    answers(table)
    other = torch.randn(6, 7)
    for _ in range(2):
        table.add(1, other)
        assert table.lengths(Routing.of([{1: 1.0}, {2: 1.0}, {20: 1.0}])).tolist() == [6, 50, 0]
        x = torch.randn(1, 7)
        torch.testing.assert_close(per_task_product(x, table, Routing.of([{1: 1.0}]))[:, :6], x @ other.T)
        table.remove(1)
        assert table.lengths(Routing.of([{1: 1.0}])).tolist() == [0]
        assert table.stack.shape[1] == table.longest == 50
    table.remove(2)
    assert table.longest == max(size for slot, size in SIZES.items() if slot in table.slots)
    assert answers(table)[0].shape[-1] == table.longest and not answers(table)[0].any()
