"""One model of the table, end to end: two fine-tunes compressed, loaded, and compared with the dense models.

The dense model of a task is what ``dts apply`` would write: base + adapter, in a checkpoint that the model's own
library loads.  So names on disk, the loader and the run-time must agree.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import dts
from dts_kernels.dispatch import exact_products
from tests.models.row import Row

TOLERANCE = 2e-5  # of the reference's norm, in float32; what rounding in another order costs is about 1e-6
TELLS = 100 * TOLERANCE  # tasks' answers must differ by more, or a comparison says nothing
TASKS = ("a", "b", None, "a")  # a task a row
PROMPT_TASKS = ("a", "b")


@dataclass(frozen=True)
class Outcome:
    """What a row of the table was found to do.

    error: the largest difference to a dense model, over its norm;  grouped: why rows of several tasks run once a task,
    empty where they go through the model together;  once_a_task: kinds of modules that do so alone.
    """

    error: float
    grouped: tuple[str, ...]
    once_a_task: tuple[str, ...]


def check(row: Row, folder: Path) -> Outcome:
    """Raises AssertionError where a task's answers are not its dense model's."""
    torch.manual_seed(0)
    base = shaken(row.make())
    adapters, tuned = {}, {}
    place(base, folder / "base")
    for seed, task in enumerate("ab", 1):
        tuned[task] = moved(base, seed)
        place(tuned[task], folder / task)
        method = {"method": "residual"} if task == "a" else {"method": "sketch"}
        size = {"rank_fraction": 0.125}
        adapters[task] = dts.compress(folder / "base", folder / task, out=folder / f"adapter-{task}", **size, **method)
    with torch.no_grad(), exact_products():
        return compared(row, folder, base, tuned, adapters)


def compared(row: Row, folder: Path, base: nn.Module, tuned: dict[str, nn.Module], adapters: dict[str, Any]) -> Outcome:
    dense: dict[str | None, nn.Module] = {None: base}
    for task, adapter in adapters.items():
        dense[task] = applied(base, adapter, folder / "base", folder / f"dense-{task}")
    model = loaded(base, folder / "base", adapters)
    batch, errors = row.inputs(base, len(TASKS)), [0.0]

    wanted = {task: outputs(one(**batch)) for task, one in dense.items()}
    for task in "ab":  # the references are what they should be: each answers otherwise, and nearer to its fine-tune
        away = distance(wanted[None], wanted[task], row)
        assert away > TELLS, f"task {task} answers as the base does: {away:.1e}"
        near = outputs(tuned[task](**batch))
        if task == "a":
            assert distance(wanted[task], near, row) < 0.5 * distance(wanted[None], near, row), (
                "no nearer to its fine-tune"
            )
    assert distance(wanted["a"], wanted["b"], row) > TELLS, "both tasks answer alike"

    def same(found: Any, expected: Mapping[str, Tensor], what: str) -> None:
        errors.append(distance(outputs(found), expected, row))
        assert errors[-1] <= TOLERANCE, f"{what}: {errors[-1]:.1e} of the dense model's norm away"

    same(model(**batch), wanted[None], "the base")
    same(model(**batch, tasks="b"), wanted["b"], "one task")
    model.set_task("a")
    same(model(**batch), wanted["a"], "the task that is set")
    model.set_task(None)
    names = row.compared(wanted[None], len(TASKS))
    rows = {name: torch.cat([wanted[task][name][i : i + 1] for i, task in enumerate(TASKS)]) for name in names}
    same(model(**batch, tasks=list(TASKS)), rows, "a task a row")

    if row.prompt is not None:
        generated(row, model, dense)
    status = model.status()
    merged = model.merge_and_unload("b")
    same(merged(**batch), wanted["b"], "merged")
    same_weights(merged, dense["b"])
    modules = dict(base.named_modules())
    grouped = tuple(sorted(set(status["grouped"].values())))
    alone = tuple(sorted({type(modules[name]).__name__ for name in status["once_a_task"] if name in modules}))
    return Outcome(max(errors), grouped, alone)


def generated(row: Row, model: dts.DTSModel, dense: Mapping[str | None, Any]) -> None:
    prompt = row.prompt(dense[None], len(PROMPT_TASKS))
    for options in (dict(num_beams=1), dict(num_beams=2)):
        options |= dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
        found = model.generate(**prompt, tasks=list(PROMPT_TASKS), **options)
        for i, task in enumerate(PROMPT_TASKS):
            alone = {key: given[i : i + 1] if isinstance(given, Tensor) else given for key, given in prompt.items()}
            expected = dense[task].generate(**alone, **options)[0]
            assert torch.equal(found[i], expected), f"{options}: row {i}, {found[i].tolist()} not {expected.tolist()}"


# ---- models and their outputs --------------------------------------------------------------------------------------


def _padding(model: nn.Module) -> dict[str, int]:
    """Rows of tables that no training moves, by the parameter's name."""
    tables = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {f"{name}.weight": table.padding_idx for name, table in tables.items() if table.padding_idx is not None}


def shaken(model: nn.Module) -> nn.Module:
    """The same with nothing left at the constants that it was initialised with."""
    padding = _padding(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.1 * torch.randn_like(parameter)
                if name in padding:
                    noise[padding[name]] = 0
                parameter += noise
    return model.eval()


def moved(base: nn.Module, seed: int) -> nn.Module:
    """A fine-tune: every parameter and every statistic of it moved, matrices mostly in a few directions."""
    generator = torch.Generator().manual_seed(seed)
    tuned, padding = copy.deepcopy(base), _padding(base)
    statistics = {n: b for n, b in tuned.named_buffers() if n.endswith(("running_mean", "running_var"))}
    with torch.no_grad():
        for name, tensor in (*tuned.named_parameters(), *statistics.items()):
            if not tensor.requires_grad and name not in statistics:
                continue  # tables that the model computes by itself
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                flat = noise.flatten(1)
                low = flat[:, :1] @ torch.randn(1, flat.shape[1], generator=generator)
                noise = low.view(tensor.shape) + 0.1 * noise
            if name in padding:
                noise[padding[name]] = 0
            if name.endswith("running_var"):
                tensor *= (0.1 * noise).exp()
            else:
                tensor += 0.1 * tensor.square().mean().sqrt() * noise
    return tuned


def place(model: nn.Module, folder: Path) -> None:
    """Write a model as its library does; one of no library with ``save_pretrained`` as a file of tensors."""
    write: Any = getattr(model, "save_pretrained", None)
    if write is not None:
        write(folder)
        return
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")


def applied(base: nn.Module, adapter: Any, source: Path, folder: Path) -> nn.Module:
    """base + adapter, through a checkpoint, by the model's own loader."""
    kind: Any = type(base)
    tensors = dict(adapter.apply(source))
    if hasattr(base, "save_pretrained"):
        folder.mkdir(parents=True)
        for file in source.iterdir():
            if file.suffix == ".json" and not file.name.endswith(".index.json"):
                (folder / file.name).write_bytes(file.read_bytes())
        name = next(file.name for file in source.iterdir() if file.suffix == ".safetensors")
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name, metadata={"format": "pt"})
        return kind.from_pretrained(folder).eval()
    twin = copy.deepcopy(base)
    twin.load_state_dict(tensors, strict=True)
    return twin


def loaded(base: nn.Module, folder: Path, adapters: Mapping[str, Any]) -> dts.DTSModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* did not use.*")  # that the answers are right is compared
        if hasattr(getattr(base, "config", None), "get_text_config"):
            return dts.DTSModel.from_pretrained(folder, adapters=adapters)
        model = dts.DTSModel(copy.deepcopy(base))
        for name, adapter in adapters.items():
            model.load_task(name, adapter)
        return model


def outputs(result: Any) -> dict[str, Tensor]:
    """The tensors of an output by name, without caches."""
    if isinstance(result, Tensor):
        return {"output": result}
    named = dict(result.items()) if isinstance(result, Mapping) else {str(i): part for i, part in enumerate(result)}
    found = {}
    for name, value in named.items():
        leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        found |= {name if isinstance(value, Tensor) else f"{name}.{i}": leaf for i, leaf in enumerate(leaves)}
    return found


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], row: Row) -> float:
    """The largest difference of the outputs that are compared, each over its norm."""
    names = row.compared(expected, len(TASKS))
    missing = [name for name in names if name not in found]
    assert names and not missing, f"outputs {missing} of {list(expected)} are missing: there are {list(found)}"
    return max(_distance(found[name], expected[name]) for name in names)


def _distance(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, f"{list(found.shape)} where the dense model gives {list(expected.shape)}"
    here, there = (t.detach().double() for t in (found, expected))
    finite = there.isfinite()
    assert torch.equal(finite, here.isfinite()), "infinite in other places than the dense model's"
    here, there = here[finite], there[finite]
    return float((here - there).norm() / there.norm().clamp(min=1e-12))


def same_weights(merged: nn.Module, dense: nn.Module) -> None:
    """What was merged has the dense model's tensors, by name."""
    found, expected = merged.state_dict(), dense.state_dict()
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    far = {n: _distance(found[n], t) for n, t in expected.items() if t.is_floating_point()}
    worst = max(far, key=lambda n: far[n])
    assert far[worst] <= TOLERANCE, f"merged {worst} is {far[worst]:.1e} away"
