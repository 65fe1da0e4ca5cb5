"""One launch of `shrink` for products that share an input: its bits, and who takes part."""

from collections import Counter

import pytest
import torch

import dts_kernels as kernels
from dts_kernels.gpu import launch, products, same_input
from dts_kernels.gpu.config import Config
from dts_kernels.gpu.same_input import Recording
from tests.dts_kernels.gpu.interpreted.capturing import Capturing
from tests.dts_kernels.gpu.interpreted.common import IN, TOLERANCE, error, factors

OUTS, RANKS = (
    (60, 20, 33),
    ({0: 130, 1: 7, 2: 1, 6: 40}, {0: 7, 2: 128, 7: 3}, {1: 200, 3: 20}),
)  # of slots that are filled


@pytest.fixture
def capturing():
    launcher = Capturing()
    before = launch.use(launcher)
    with torch.no_grad():
        yield launcher
    launch.use(before)


@pytest.fixture
def config(monkeypatch):
    """(split, block_n) of all launches."""

    def choose(split, block_n=128):
        chosen = Config(split=split, block_n=block_n)
        monkeypatch.setattr(
            products.config, "choose", lambda kernel, *rest: chosen if kernel == "shrink" else Config(block_n=64)
        )

    choose(1)
    return choose


def banks(levels=False):
    torch.manual_seed(0)
    made = []
    for out, ranks in zip(OUTS, RANKS):
        own = kernels.Bank(IN, out, layout="planar")
        for slot, rank in ranks.items():
            own.add(slot, factors(rank, levels and rank == max(ranks.values()), out_features=out, seed=slot))
        made.append(own)
    return made


def linears(made, x, weights, routing, between=None):
    found = []
    for own, weight in zip(made, weights):
        found.append(kernels.linear(x, weight, None, own, routing))
        if between is not None:
            between(len(found), x)
    return found


def both(capturing, made, x, weights, routing, between=None):
    """(each by itself, shared, what was launched then, the second recording)"""
    first = Recording()
    with same_input.recording(first):
        alone = linears(made, x.clone(), weights, routing, between)
    capturing.order.clear()
    second = Recording(first.found)
    with same_input.recording(second):
        shared = linears(made, x.clone(), weights, routing, between)
    return alone, shared, capturing.order, second


EIGHT = [0, 1, 2, 3, None, 5, 6, 7]


@pytest.mark.parametrize(
    "entries,rows,levels,count,split,block_n",
    [
        ([0], 1, False, 3, 2, 128),
        (EIGHT, 8, False, 3, 1, 128),
        ([{0: 0.5, 1: -2.0}, {3: 1.5}], 2, False, 2, 2, 64),
        ([1], 17, True, 2, 1, 128),
    ],
    ids=["one row", "a task a row", "mixtures", "levels"],
)
def test_one_launch_has_the_bits_of_each_by_itself(
    capturing, config, count, split, block_n, entries, rows, levels, dtype
):
    config(split, block_n)
    made, routing = banks(levels)[:count], kernels.Routing.of(entries)
    x, weights = torch.randn(rows, IN).to(dtype), [(torch.randn(own, IN) / 12).to(dtype) for own in OUTS]
    alone, shared, order, recording = both(capturing, made, x, weights, routing)
    assert all(map(torch.equal, alone, shared)) and recording.taken == count - 1
    combined = ["combine_parts"] * (split > 1)
    assert order == ["fork shrink", "join shrink", "shrink_together", *combined, *["expand"] * count]
    for own, weight, got in zip(made, weights, shared):
        known = {slot: own.factors(slot) for slot in own.slots}
        wanted = x.double() @ weight.double().T
        wanted += kernels.reference.delta_linear(x.double(), known, routing.slots, routing.weights, len(weight))
        assert error(got, wanted) < TOLERANCE[dtype]


def test_one_launch_has_the_bits_of_each_by_itself_in_bfloat16(capturing, config):
    """Whatever the interpreter makes of its products."""
    made, routing = banks(), kernels.Routing.of(EIGHT)
    x, weights = torch.randn(8, IN).bfloat16(), [(torch.randn(own, IN) / 12).bfloat16() for own in OUTS]
    alone, shared, _, recording = both(capturing, made, x, weights, routing)
    assert all(map(torch.equal, alone, shared)) and recording.taken == 2


def test_what_one_launch_cannot_make_is_made_by_others(capturing, monkeypatch):
    """Four matrices, of which the second has parts of its own: what bits depend on stays as it is."""
    splits = {128: 2, 256: 1}
    monkeypatch.setattr(
        products.config,
        "choose",
        lambda kernel, device, dtype, columns, *rest: Config(
            block_n=64, split=splits[columns] if kernel == "shrink" else 1
        ),
    )
    made, routing = banks(), kernels.Routing.of([2])
    order = [made[0], made[1], made[2], made[0], made[0], made[0]]
    assert [own.max_rank for own in made] == [256, 128, 256]
    x, weights = torch.randn(2, IN), [torch.randn(own.shape) for own in order]
    alone, shared, launched, recording = both(capturing, order, x, weights, routing)
    assert all(map(torch.equal, alone, shared)) and recording.taken == 2
    names = Counter(name for name in launched if "shrink" in name and " " not in name)
    assert names == {"shrink": 3, "shrink_together": 1}


@pytest.mark.parametrize("what", ["x", "view of x", "routing", "another x", "the same numbers elsewhere"])
def test_another_input_takes_a_launch_of_its_own(capturing, config, what):
    """The second recording is told that all three share, and sees that they do not."""
    made, routing, other = banks(), kernels.Routing.of([2]), kernels.Routing.of([0])
    x, weights = torch.randn(2, IN), [torch.randn(own, IN) / 12 for own in OUTS]
    first = Recording()
    with same_input.recording(first):
        linears(made, x, weights, routing)
    assert len(first.found) == 1
    second, found = Recording(first.found), []
    with same_input.recording(second):
        found.append(kernels.linear(x, weights[0], None, made[0], routing))
        if what == "x":
            x.mul_(2)  # its version tells
        elif what == "view of x":
            with torch.inference_mode():
                view = x[1:]
            view.mul_(2)
            second.written(view)
        elif what == "routing":
            routing = other
        elif what == "another x":
            x = torch.randn(2, IN)
        else:
            x = x.clone()
        found += [kernels.linear(x, weight, None, own, routing) for own, weight in zip(made[1:], weights[1:])]
    assert second.taken == 0
    alone = linears(made, x, weights, routing)
    assert all(map(torch.equal, found[1:], alone[1:]))


def test_a_bank_that_is_another_since_takes_a_launch_of_its_own(capturing, config):
    made, routing = banks(), kernels.Routing.of([2])
    x, weights = torch.randn(2, IN), [torch.randn(own, IN) / 12 for own in OUTS]
    first = Recording()
    with same_input.recording(first):
        linears(made, x, weights, routing)
    made[1].add(40, factors(300, out_features=OUTS[1]))  # beyond its room: another table
    second = Recording(first.found)
    with same_input.recording(second):
        found = linears(made, x, weights, routing)
    assert second.taken == 0 and all(map(torch.equal, found, linears(made, x, weights, routing)))
