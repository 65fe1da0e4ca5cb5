"""What the interpreter's tests and those on a GPU share, and what runs the former: Triton's mode is fixed at import."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dts_kernels.layout import level_coefficients, words_to_codes
from dts_kernels.operands import FactorOperands
from dts_kernels.planar import HEADER


@pytest.fixture
def every_half_word():
    """(dtype, device) -> (x, operands of `products.Launch`, wanted): x times V^T is V's decoded words.

    The words hold each of the 65,536 half words as a low and as a high half.  wanted: float32 [128, 8192].
    """

    def make(dtype, device):
        half = torch.arange(1 << 16)
        words = half | (half * 40503 + 12345 & 0xFFFF) << 16
        words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
        columns = words.numel() // 8
        table = torch.tensor([[0, 0, 0, columns]])
        head = torch.tensor([1.0, *level_coefficients(None), *level_coefficients(None)])
        scalars = torch.cat([torch.nn.functional.pad(head, (0, HEADER - len(head))), torch.ones(columns)])
        codes = words_to_codes(words.view(1, columns, 8), 128, columns).long()
        packed = [words.to(device), scalars.to(device)]
        slots, weights = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1)
        operands = FactorOperands(packed, table.to(device), slots.to(device), weights.to(device), 1, columns, "planar")
        return torch.eye(128, dtype=dtype, device=device), operands, torch.tensor([1.0, 4, -1, -4])[codes].to(device)

    return make


@pytest.fixture(scope="session")
def interpret():
    """(name) runs interpreted/<name>.py in a process where Triton interprets; every test there must pass, none skip."""

    def run(name: str) -> None:
        cases = Path(__file__).parent / "interpreted" / f"{name}.py"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
            capture_output=True,
            text=True,
            env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[3],
        )
        assert done.returncode == 0, done.stdout + done.stderr
        functions = len(re.findall(r"^def test_", cases.read_text(), re.MULTILINE))
        assert functions and int(re.search(r"(\d+) passed", done.stdout)[1]) >= functions, done.stdout
        assert "skipped" not in done.stdout, done.stdout

    return run
