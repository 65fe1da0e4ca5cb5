"""Load, switch and run: one encoder of MiniLM's size (6 layers of 384, random weights) with eight tasks of 1 % each.

    python -m pytest benchmarks/test_runtime.py --benchmark-only

The dense forward of the base is beside the others, to read them as ratios.
"""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from dts.adapter import Entry  # noqa: E402
from dts.codec import Factors  # noqa: E402
from dts.nn import DTSModel  # noqa: E402
from dts_kernels import PackedFactors, pack  # noqa: E402

TASKS, RANK, ROWS, LENGTH = 8, 38, 8, 32  # a rank of a tenth of 384: 0.9 % of an fp32 matrix


def build():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12
    )
    return transformers.BertModel(config).eval()


def random_task(base, seed):
    generator = torch.Generator().manual_seed(seed)
    entries = {}
    for name, parameter in base.named_parameters():
        shape = tuple(parameter.shape)
        if parameter.dim() == 1:
            entries[name] = Entry(name, name, shape, "delta", tensor=0.01 * torch.randn(shape, generator=generator))
        else:
            rank = min(RANK, *shape)
            codes = [torch.randint(0, 4, (size, rank), generator=generator, dtype=torch.uint8) for size in shape]
            packed = PackedFactors(pack(codes[0]), pack(codes[1]), 1e-3 * torch.rand(rank, generator=generator))
            factors = Factors((packed,), shape, None, None, 1.0, 0.1)
            entries[name] = Entry(name, name, shape, "factors", factors=factors)
    return entries


@pytest.fixture(scope="module")
def tasks():
    base = build()
    return {f"task{i}": random_task(base, i) for i in range(TASKS)}


@pytest.fixture(scope="module")
def model(tasks):
    model = DTSModel(build())
    for name, entries in tasks.items():
        model.load_task(name, entries)
    return model


@pytest.fixture(scope="module")
def batch():
    return {"input_ids": torch.randint(0, 1000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))}


def test_load_a_task(benchmark, tasks):
    def setup():
        return (DTSModel(build()),), {}

    benchmark.pedantic(lambda model: model.load_task("task0", tasks["task0"]), setup=setup, rounds=5)


def test_switch_the_task_of_the_model(benchmark, model):
    names = iter(name for _ in range(10**6) for name in model.tasks)
    benchmark(lambda: model.set_task(next(names)))


@torch.no_grad()
def test_forward_of_the_dense_base(benchmark, batch):
    base = build()
    benchmark(lambda: base(**batch))


FORWARDS = {
    "the base": None,
    "one task": "task0",
    "a mixture of 2": {"task0": 0.5, "task1": 0.5},
    "8 tasks, one a row": [f"task{i}" for i in range(TASKS)],
    "8 rows, half of them the base": ["task0", None, "task1", None, "task2", None, "task3", None],
}


@pytest.mark.parametrize("rows", FORWARDS)
@torch.no_grad()
def test_forward(benchmark, model, batch, rows):
    chosen = FORWARDS[rows]
    model(**batch, tasks=chosen or [None] * ROWS)  # find the rows once
    benchmark(lambda: model(**batch, tasks=chosen or [None] * ROWS))
