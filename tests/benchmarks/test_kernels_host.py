"""Host time without a GPU: every kind of layer goes the way it goes on one, to a launcher that launches nothing."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install triton)")

from benchmarks.kernels import host  # noqa: E402
from dts_kernels import dispatch  # noqa: E402
from dts_kernels.bank import Bank  # noqa: E402
from dts_kernels.gpu import launch  # noqa: E402


class Counting(host.Nothing):
    looked = 0

    def launch(self, call):
        self.looked += 1
        return super().launch(call)


def test_every_kind_of_layer_is_timed_and_all_is_as_before(monkeypatch):
    kinds = {name: kind for name, kind in host.kinds().items() if "embedding" not in name}  # no kernel: all reference
    monkeypatch.setattr(host, "kinds", lambda: kinds)
    before, counting = launch.launcher, Counting()
    with host.as_on_a_card(counting):
        dispatch.ran.clear()
        rows = list(host.measure("cpu", 1, 1))
        assert launch.launcher is counting and Bank(8, 8).layout == "planar"
    assert [(row["layer"], row["rows"]) for row in rows] == [(name, n) for name in kinds for n in (1, host.TASKS)]
    assert all(min(row["dts_us"], row["plain_us"]) > 0 for row in rows)
    assert {path for _, path in dispatch.ran} == {"triton"}
    assert 0 < counting.looked < 60  # of hundreds of launches
    assert launch.launcher is before and Bank(8, 8).layout == "disk"
    assert not torch.is_inference_mode_enabled()


def test_a_calls_time_is_the_best_by_the_clock_that_is_given():
    ticks = iter([0.0, 6.0, 10.0, 12.0, 20.0, 29.0])
    assert host.microseconds(lambda: None, 2, 3, lambda: None, lambda: next(ticks)) == 1e6
