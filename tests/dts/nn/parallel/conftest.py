"""Groups of processes, and tiny models on disk."""

import copy
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


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Iterator[Ranks]:
    yield from _ranks(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Iterator[Ranks]:
    yield from _ranks(4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``base``, a tiny Llama, and ``a``, ``b`` and ``sketch``, adapters of fine-tunes of all its parameters."""
    root = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    base.save_pretrained(root / "base")
    for name in ("a", "b", "sketch"):
        model = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(root / "fine-tune")
        method = {"method": "sketch"} if name == "sketch" else {}
        dts.compress(root / "base", root / "fine-tune", out=root / name, budget=0.2, **method)
    return root
