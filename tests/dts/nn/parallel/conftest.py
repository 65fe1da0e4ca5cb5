"""Groups of processes, and tiny models on disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dts
from tests.dts.nn.parallel.models import LLAMA
from tests.dts.nn.parallel.ranks import Ranks

transformers = pytest.importorskip("transformers")


def _ranks(count: int, folder: Path) -> Iterator[Ranks]:
    found = Ranks(count, folder)
    yield found
    found.end()


@pytest.fixture(scope="session")
def two(tmp_path_factory) -> Iterator[Ranks]:
    yield from _ranks(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="session")
def four(tmp_path_factory) -> Iterator[Ranks]:
    yield from _ranks(4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """``base``, a tiny Llama, and ``a``, a sketch of a fine-tune of all its parameters."""
    root = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    base.save_pretrained(root / "base")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    base.save_pretrained(root / "fine-tune")
    dts.compress(root / "base", root / "fine-tune", out=root / "a", budget=0.2, method="sketch")
    return root
