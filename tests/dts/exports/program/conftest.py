"""A program that was made once."""

import pytest

from dts.exports import torch_program
from tests.dts.exports.program.toy import ids, toy


@pytest.fixture(scope="package")
def rows_program():
    """(the base, entries of its two tasks, their program, mixtures of two)."""
    base, model, made = toy()
    return base, made, torch_program(model, {"ids": ids(3)}, places=2)
