"""Work on one tensor after another, on all cores: results in order, and the same on any number of them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

ALONE = 1 << 24  # elements above which a job runs by itself with all threads: two such would take too much memory
HELD = 1 << 25  # elements of all the jobs that are under way

Result = TypeVar("Result")


def in_order(jobs: Iterable[tuple[int, Callable[[], Result]]]) -> Iterator[Result]:
    """The results of ``jobs`` (elements, function), in their order.

    A matrix's eigenvalues and sweeps are many small steps: threads that share each of them mostly wait for one
    another, threads that have a matrix each do not.  So as many jobs run at a time as torch has threads, with one
    thread each.  ``jobs`` is drawn from the calling thread, not much ahead of the results.
    """
    threads = torch.get_num_threads()
    if threads < 2:
        for _, job in jobs:
            yield job()
        return
    waiting: deque[tuple[int, Future]] = deque()
    with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
        try:
            for elements, job in jobs:
                alone = elements > ALONE
                while waiting and (alone or len(waiting) > threads or sum(n for n, _ in waiting) + elements > HELD):
                    yield waiting.popleft()[1].result()
                if alone:
                    torch.set_num_threads(threads)  # what a worker sets may be everyone's
                    yield job()
                else:
                    waiting.append((elements, pool.submit(job)))
                del job  # and the tensor it holds
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()
            torch.set_num_threads(threads)
