"""Signals before the server has a door to close, and those of a terminal that goes."""

import signal
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="needs fastapi (pip install 'dts-merge[serve]')")
pytest.importorskip("uvicorn", reason="needs uvicorn (pip install 'dts-merge[serve]')")
pytest.importorskip("prometheus_client", reason="needs prometheus-client (pip install 'dts-merge[serve]')")

from dts.serve.http import run  # noqa: E402
from dts.serve.options import Options  # noqa: E402
from dts.serve.signals import HANGUP, ending  # noqa: E402

SIGNALS = [signal.SIGTERM, *HANGUP]


@pytest.fixture(params=SIGNALS, ids=lambda one: one.name)
def heard(request):
    """(a signal, how often it came to whoever had it before): without it the tests would end."""
    came = []
    before = signal.signal(request.param, lambda number, frame: came.append(number))
    yield request.param, came
    signal.signal(request.param, before)


def test_a_signal_while_the_base_is_loaded_ends_the_server_with_0(heard, caplog):
    one, came = heard
    with pytest.raises(SystemExit) as ended, ending():
        try:
            signal.raise_signal(one)
        finally:
            signal.raise_signal(one)  # it ends already
    assert ended.value.code == 0 and came == [] and f"stopped by {one.name}" in caplog.text
    signal.raise_signal(one)
    assert came == [one]  # it is whose it was again


def test_a_signal_that_is_ignored_is_ignored(heard):
    signal.signal(heard[0], signal.SIG_IGN)
    with ending():
        signal.raise_signal(heard[0])


@pytest.mark.skipif(not HANGUP, reason="no terminals that hang up")
def test_a_terminal_that_closes_ends_the_server_as_sigterm_does(monkeypatch):
    engine = SimpleNamespace(drain=lambda seconds: True, give_up=lambda: 0, draining=False)
    served = SimpleNamespace(engine=engine)
    monkeypatch.setattr(run, "problems", lambda options: [])
    monkeypatch.setattr(run, "prepared", lambda options: (served, run.Metrics(), None))
    came = []
    before = signal.signal(HANGUP[0], lambda number, frame: came.append(number))

    def serve(server):
        signal.raise_signal(HANGUP[0])
        came.append(server.should_exit)

    monkeypatch.setattr(run.Server, "run", serve)
    try:
        assert run.run(Options("base", "adapters")) == 0
    finally:
        signal.signal(HANGUP[0], before)
    assert came == [True] and engine.draining
