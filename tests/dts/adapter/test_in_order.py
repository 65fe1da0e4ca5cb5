"""Results in order, the same on any number of threads."""

import time

import pytest
import torch

from dts.adapter import compress
from dts.adapter.in_order import ALONE, in_order


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_come_in_order_and_threads_are_as_before(threads):
    threads(3)
    job = lambda i: (time.sleep(0.01 * (i % 3 == 0)), i)[1]  # noqa: E731
    jobs = ((ALONE + 1 if i == 5 else 1, lambda i=i: job(i)) for i in range(12))
    assert list(in_order(jobs)) == list(range(12))
    assert torch.get_num_threads() == 3


def test_an_error_of_one_job_is_raised_and_the_rest_is_not_begun(threads):
    threads(2)
    drawn = []

    def jobs():
        for i in range(100):
            drawn.append(i)
            yield 1, (lambda: 1 / 0) if i == 1 else lambda: 0

    with pytest.raises(ZeroDivisionError):
        list(in_order(jobs()))
    assert len(drawn) < 10 and torch.get_num_threads() == 2


def test_adapters_are_the_same_on_any_number_of_threads(threads):
    generator = torch.Generator().manual_seed(0)
    base = {f"layer.{i}.weight": torch.randn(96, 80, generator=generator) for i in range(5)}
    tuned = {name: value + 0.1 * torch.randn(96, 80, generator=generator) for name, value in base.items()}
    made = []
    for count in (1, 2, 3):
        threads(count)
        made.append(compress(base, tuned, budget=0.05))
    for other in made[1:]:
        for name, entry in made[0].entries.items():
            ours, theirs = entry.factors.packed, other.entries[name].factors.packed
            assert all(torch.equal(getattr(ours, key), getattr(theirs, key)) for key in ("u", "v", "sigma"))
