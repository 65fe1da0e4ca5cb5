"""A small module with every layer and every kind of part, random tasks of it, and the dense models they stand for."""

import torch
from torch import nn

import dts
from dts.adapter.entries import Entry
from tests.dts.nn.conftest import Maker, dense

WORDS, WIDTH, CLASSES = 12, 8, 3
TIGHT = dict(rtol=1e-5, atol=1e-5)
MIXED = ["a", None, "b", {"a": 0.7, "b": -0.4}, "a"]


def ids(rows, length=4):
    return torch.randint(WORDS, (rows, length), generator=torch.Generator().manual_seed(rows))


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down, self.odd = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids, scale=None):
        x = self.norm(self.words(ids))
        x = x + self.down(torch.tanh(self.up(x))) + self.odd(x)
        return self.head(x.mean(1) if scale is None else x.mean(1) * scale)


def entries(maker: Maker, base: nn.Module) -> dict[str, Entry]:
    """One task: components, levels, samples, some rows and columns only, biases, norms."""
    m, named = dict(base.named_parameters()), dict[str, Entry]()

    def add(name, **options):
        shape = tuple(m[name].shape)
        named[name] = Entry(name=name, base_name=name, shape=shape, **options)

    add("words.weight", kind="factors", factors=maker.factors(WORDS, WIDTH, 3, rows=5))
    add("up.weight", kind="factors", factors=maker.factors(12, WIDTH, 5))
    add("down.weight", kind="factors", factors=maker.factors(WIDTH, 12, 3, levels=True))
    add("odd.weight", kind="factors", factors=maker.factors(WIDTH, WIDTH, 2, rows=4, columns=3))
    for name in ("norm.weight", "norm.bias", "up.bias", "down.bias"):
        add(name, kind="delta", tensor=maker.randn(*m[name].shape, dtype=torch.float32))
    return named


def toy(tasks=("a", "b"), seed: int = 0) -> tuple[nn.Module, dts.DTSModel, dict[str, dict[str, Entry]]]:
    """The base, a copy of it that runs the tasks, and their entries."""
    torch.manual_seed(seed)
    base, maker = Toy().eval(), Maker(seed)
    made = {name: entries(maker, base) for name in tasks}
    model = dts.DTSModel(dense(base, []))
    for name, own in made.items():
        model.load_task(name, own)
    return base, model, made


def expected(base: nn.Module, made: dict[str, dict[str, Entry]], ids, tasks, **inputs) -> torch.Tensor:
    """Each row by the dense model of its task or mixture."""
    rows = []
    for row, task in enumerate(tasks):
        mixture = {} if task is None else task if isinstance(task, dict) else {task: 1.0}
        twin = dense(base, [(made[name], weight) for name, weight in mixture.items()])
        rows.append(twin(ids[row : row + 1], **{k: v[row : row + 1] for k, v in inputs.items()}))
    return torch.cat(rows)
