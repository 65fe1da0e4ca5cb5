"""Random sequences of what is done to a model, each answer against the dense models: the same draws in every run."""

import copy
import pickle
import random
import threading
import warnings

import pytest
import torch
from torch import nn

import dts
from dts.nn import DTSModel

NAMES, LETTERS, STEPS = "pqr", "abc", 25


class Net(nn.Module):
    """Layers of every kind: packed, once a task, vectors, read past their forward, of the root itself."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.scale = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Parameter(torch.rand(8) + 0.5)
        self.conv, self.cell = nn.Conv1d(8, 8, 3, padding=1, groups=2), nn.GRU(8, 8, batch_first=True)
        self.read, self.out = nn.Linear(8, 8), nn.Linear(8, 6)

    def forward(self, ids):
        x = self.conv(self.norm(self.embed(ids)).mT * self.scale[:, None]).mT
        return self.out(nn.functional.linear(self.cell(x)[0], self.read.weight, self.read.bias).mean(1))


class Plain(nn.Sequential):
    """Nothing but layers that take rows of several tasks."""

    def __init__(self):
        super().__init__(nn.Embedding(20, 8), nn.Linear(8, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 6))


class Walk:
    """loaded: a task's name -> whose entries it has;  chosen: what is set, one or one a row."""

    def __init__(self, kind, seed, maker, dense_twin):
        torch.manual_seed(0)
        self.draw, self.base, self.dense_twin = random.Random(seed), kind().double().eval(), dense_twin
        self.entries = {letter: maker.entries(self.base, skip=0) for letter in LETTERS}
        self.model, self.loaded, self.chosen = DTSModel(copy.deepcopy(self.base)), {}, [None]
        self.twins = {}

    def selection(self):
        names = sorted(self.loaded)
        if not names or self.draw.random() < 0.2:
            return dts.BASE
        if self.draw.random() < 0.2:
            return {
                name: self.draw.choice([1.0, 0.5, -0.25, 0.0]) for name in self.draw.sample(names, 1 + len(names) // 2)
            }
        return self.draw.choice(names)

    def expected(self, task, ids):
        mixture = task if isinstance(task, dict) else {task: 1.0} if isinstance(task, str) else {}
        key = tuple(sorted((self.loaded[name], weight) for name, weight in mixture.items()))
        if key not in self.twins:
            self.twins[key] = self.dense_twin(self.base, [(self.entries[letter], weight) for letter, weight in key])
        return self.twins[key](ids)

    def check(self, model, tasks=None):
        """A call with these tasks, one or one a row; None: of what is set."""
        asked = self.chosen if tasks is None else tasks if isinstance(tasks, list) else [tasks]
        rows = len(asked) if len(asked) > 1 else self.draw.randint(1, 3)
        ids = torch.tensor([[self.draw.randrange(20) for _ in range(4)] for _ in range(rows)])
        found = model(ids) if tasks is None else model(ids, tasks=tasks if len(asked) == rows > 1 else asked[0])
        for i, task in enumerate(asked * rows if len(asked) == 1 else asked):
            torch.testing.assert_close(found[i : i + 1], self.expected(task, ids[i : i + 1]), rtol=1e-8, atol=1e-9)

    def rows(self):
        return [self.selection() for _ in range(self.draw.randint(2, 4))]

    # ---- what is done ------------------------------------------------------------------------------------------

    def load(self):
        name, letter = self.draw.choice(NAMES), self.draw.choice(LETTERS)
        self.model.load_task(name, self.entries[letter])
        self.loaded[name] = letter

    def delete(self):
        if self.loaded:
            name = self.draw.choice(sorted(self.loaded))
            self.model.delete_task(name)
            del self.loaded[name]
            self.chosen = [
                dts.BASE if name == task or isinstance(task, dict) and name in task else task for task in self.chosen
            ]

    def choose(self):
        self.chosen = [self.selection()]
        self.model.set_task(self.chosen[0])

    def choose_rows(self):
        self.chosen = self.rows()
        self.model.set_tasks(self.chosen)

    def call(self):
        self.check(self.model)

    def call_one(self):
        self.check(self.model, self.selection())

    def call_rows(self):
        self.check(self.model, self.rows())

    def stretch(self):
        task = self.selection()
        with self.model.using_task(task):
            self.check(self.model, self.rows())
            before, self.chosen = self.chosen, [task]
            self.check(self.model)
            self.chosen = before

    def copied(self):
        other = self.model
        self.model = self.draw.choice([copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])(other)
        if self.loaded:
            other.delete_task(sorted(self.loaded)[0])

    def merged(self):
        task = self.selection()
        plain = copy.deepcopy(self.model).merge_and_unload(task)
        ids = torch.tensor([[self.draw.randrange(20) for _ in range(4)]])
        torch.testing.assert_close(plain(ids), self.expected(task, ids), rtol=1e-8, atol=1e-9)

    def broken(self):
        layer = self.draw.choice([module for module in self.model.model.modules() if not list(module.children())])
        error = self.draw.choice([KeyboardInterrupt, ValueError, RuntimeError])

        def fails(*given):
            raise error("no")

        handle = self.draw.choice([layer.register_forward_pre_hook, layer.register_forward_hook])(fails)
        try:
            self.model(torch.tensor([[1, 2, 3, 4]] * 3), tasks=[self.selection() for _ in range(3)])
        except error:
            pass
        finally:
            handle.remove()

    def within(self):
        """A call within a call."""
        inner, outer = self.selection(), self.rows()
        done = []

        def calls(*given):
            if not done:
                done.append(True)
                self.check(self.model, inner)

        handle = self.model.model.get_submodule("out" if isinstance(self.base, Net) else "1").register_forward_pre_hook(
            calls
        )
        self.check(self.model, outer)
        handle.remove()

    def beside(self):
        """Calls of two threads at once."""
        jobs = []
        for _ in range(2):
            asked = self.rows()
            ids = torch.tensor([[self.draw.randrange(20) for _ in range(4)] for _ in asked])
            jobs.append((asked, ids, torch.cat([self.expected(task, ids[i : i + 1]) for i, task in enumerate(asked)])))
        found = {}

        def run(number, asked, ids):
            with torch.no_grad():
                found[number] = self.model(ids, tasks=asked)

        threads = [threading.Thread(target=run, args=(i, asked, ids)) for i, (asked, ids, _) in enumerate(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, (_, _, wanted) in enumerate(jobs):
            torch.testing.assert_close(found[i], wanted, rtol=1e-8, atol=1e-9)

    def state(self):
        self.model.load_state_dict(self.model.state_dict())
        self.model.train(self.draw.random() < 0.5)


STEP = [name for name, one in vars(Walk).items() if callable(one) and not name.startswith("_")]
STEP = [name for name in STEP if name not in ("selection", "expected", "check", "rows")]


@torch.no_grad()
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", [Net, Plain])
def test_every_answer_is_the_dense_models(kind, seed, maker, dense_twin):
    walk, done = Walk(kind, seed, maker, dense_twin), []
    walk.load()
    for _ in range(STEPS):
        done.append(walk.draw.choice(STEP))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                getattr(walk, done[-1])()
        except Exception as error:
            error.add_note(f"after {', '.join(done)}")
            raise
