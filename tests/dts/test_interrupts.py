"""Ctrl-C while helper processes are started: it is put off, and never lost."""

import os
import signal
import subprocess
import sys

import pytest

from dts import interrupts
from dts.interrupts import starting

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")


@pytest.fixture
def pythons_own():
    """A shell's background jobs ignore Ctrl-C, and so does what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_is_raised_at_the_end(pythons_own):
    reached = False
    with pytest.raises(KeyboardInterrupt), starting():
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_ends_a_process_that_left_it_to_the_system():
    code = """
import os, signal
from dts.interrupts import starting
signal.signal(signal.SIGINT, signal.SIG_DFL)
with starting():
    os.kill(os.getpid(), signal.SIGINT)
    print("reached", flush=True)
print("lost")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGINT and done.stdout == "reached\n", done.stderr


def test_a_handler_that_is_not_pythons_stays(monkeypatch):
    """Python cannot put it back."""
    before, told = signal.getsignal(signal.SIGINT), signal.getsignal
    monkeypatch.setattr(interrupts.signal, "getsignal", lambda number: None)
    with starting():
        within = told(signal.SIGINT)
    assert within is before
