"""A reader ahead and a writer behind: order, bounds, errors of either side, and threads that end."""

import threading
import time

import pytest

from dts.adapter.threads import Behind, ahead


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dts-")]


def test_items_come_in_order_and_not_far_ahead():
    drawn, taken = [], []

    def items():
        for i in range(20):
            drawn.append(i)
            yield i

    with ahead(items(), depth=2) as ready:
        for item in ready:
            time.sleep(0.001)
            taken.append(item)
            assert len(drawn) <= len(taken) + 4  # two in line, one being put, one being drawn
    assert taken == list(range(20)) and alive() == []


def test_an_error_of_the_reader_comes_after_what_it_had_read():
    def items():
        yield 1
        raise OSError("layer.weight is cut off")

    taken = []
    with pytest.raises(OSError, match="layer.weight is cut off"), ahead(items()) as ready:
        taken.extend(ready)
    assert taken == [1] and alive() == []


def test_a_reader_ends_with_who_takes():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield bytes(10)
        finally:
            closed.set()

    made = items()
    with pytest.raises(KeyboardInterrupt), ahead(made) as ready:
        next(ready)
        raise KeyboardInterrupt
    made.close()
    assert closed.wait(5) and alive() == []


def test_jobs_are_done_in_order_and_all():
    done = []
    with Behind() as writer:
        for i in range(30):
            writer.do(lambda i=i: done.append(i))
    assert done == list(range(30)) and alive() == []


def test_finished_work_is_kept_when_what_is_around_fails():
    done = []
    with pytest.raises(KeyboardInterrupt), Behind() as writer:
        for i in range(3):
            writer.do(lambda i=i: (time.sleep(0.01), done.append(i)))
        raise KeyboardInterrupt
    assert done == [0, 1, 2] and alive() == []


def test_an_error_of_a_job_is_raised_and_no_job_follows():
    done = []

    def full():
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), Behind() as writer:
        writer.do(full)
        for i in range(100):
            writer.do(lambda i=i: done.append(i))
    assert len(done) == 0 and alive() == []
    with pytest.raises(OSError, match="no space left"), Behind() as writer:
        writer.do(full)
