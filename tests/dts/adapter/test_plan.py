"""What each tensor of a fine-tune becomes."""

import torch

from dts.adapter.entries import Entry
from dts.adapter.plan import Compressible, is_matrix, plan_job
from dts.adapter.vectors import EXACT, Rounding
from dts.checkpoint import open_checkpoint, pair
from dts.codec.methods import CHOICES


def draw(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plans(method="auto", rounding=EXACT) -> dict[str, Entry | Compressible | None]:
    base = {
        "matrix": draw(40, 48),
        "stack.experts": draw(3, 40, 48),
        "conv": draw(40, 6, 3, 3),
        "same": draw(20, 20),
        "half": draw(20, 20),
        "small": draw(8, 48),
        "bias": draw(40),
        "words": draw(30, 24),
        "steps": torch.arange(4),
    }
    tuned = {name: value + (0 if name in ("same", "half") else 1) for name, value in base.items()}
    tuned["half"] = tuned["half"].half()
    tuned["words"] = torch.cat([base["words"], draw(2, 24)])
    tuned["head"] = draw(3, 40)
    pairing = pair(open_checkpoint(base), open_checkpoint(tuned))
    jobs = {name: plan_job(pairing, one, CHOICES[method], True, None, rounding) for name, one in pairing.pairs.items()}
    return {name: job() for name, (_, job) in jobs.items()}


def test_each_tensor_by_its_kind():
    kinds = {name: plan and (type(plan).__name__, plan.kind) for name, plan in plans().items()}
    assert kinds == {
        "matrix": ("Compressible", "factors"),
        "stack.experts": ("Compressible", "experts"),
        "conv": ("Compressible", "factors"),
        "same": None,
        "half": None,
        "small": ("Entry", "delta"),
        "bias": ("Entry", "delta"),
        "words": ("Compressible", "factors"),
        "steps": ("Entry", "value"),
        "head": ("Entry", "value"),
    }


def test_what_a_method_takes_and_how_vectors_are_stored():
    assert isinstance(plans("paper")["small"], Compressible)
    rounded = plans(rounding=Rounding(4, 8))
    assert rounded["bias"].grid.bits == 4 and plans()["bias"].tensor.dtype == torch.float32
    assert rounded["head"].grid.bits == 8 and plans()["head"].tensor.dtype == torch.float32
    assert plans(rounding=Rounding(4, None))["head"].grid is None and rounded["small"].grid is None
    assert plans()["head"].task_only and not plans()["steps"].task_only
    assert not is_matrix("a", (40,), CHOICES["paper"]) and not is_matrix("a", (1, 40), CHOICES["paper"])


def test_matrices_and_added_rows():
    made = plans()
    assert [m.shape for m in made["stack.experts"].matrices] == [(40, 48)] * 3
    assert [m.shape for m in made["conv"].matrices] == [(40, 54)]
    assert made["words"].added_rows.shape == (2, 24) and made["words"].norm == 0
    entry = made["words"].entry([None])
    assert entry.added_rows is made["words"].added_rows and entry.factors is None
    assert made["matrix"].entry([None]) is None
