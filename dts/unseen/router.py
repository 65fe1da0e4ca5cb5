"""Which task an input belongs to, from what the adapters already hold: no training, no bytes.

A fine-tune's delta is a sum of outer products of output gradients and inputs, so the rows of V span the inputs of its
task. With s_k = sigma_k ||u_k|| the energy of an input x of layer l in the subspace of task t is

    e_tl(x) = ||s_tl o (V_tl x)||^2 / (||diag(s_tl) V_tl||_F^2 ||x||^2 / n)

which is 1 on average for x of random direction, whatever the size of the delta. An embedding's delta has no input x:
there the energy of a token is that of its row of U, over the mean of all rows. The score of a row of the batch for a
task is the mean of log e over its tokens and over layers, less what inputs of no task have (`calibrate`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dts.adapter import Adapter
from dts.codec import Factors
from dts.codec.methods import LOSSLESS
from dts.nn.layers import kind_of
from dts.sites import raw
from dts.sums import energy
from dts_kernels.reference import factor_values

from .choice import Choice, choose
from .passes import fed_first, layer_inputs
from .places import base_of, block_of, modules_named

TINY = 1e-6  # energy, relative to the mean one, below which nothing is told apart
UNSEEN = 0.1  # the same for a token: one that no text of the task had says no more than that


@dataclass
class Subspaces:
    """One layer's subspaces of all tasks.

    table: float32 [tasks, rank, n], rows s_k v_k scaled so that the mean energy of a random direction is 1 (zero for a
    task that leaves the layer alone, or has no components in it); for a lookup [tasks, ids], the energy of every id.
    absent: bool [tasks], those tasks.
    """

    table: Tensor
    lookup: bool
    absent: Tensor

    def energies(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over tokens of the log energy.

        x: [rows, ..., n], or ids [rows, ...]; mask: [rows, ...] of what counts. Returns float32 [rows, tasks].
        """
        rows = x.shape[0]
        if self.lookup:
            energy = self.table[:, x.reshape(rows, -1)].permute(1, 2, 0)  # [rows, tokens, tasks]
        else:
            x = nn.functional.normalize(x.reshape(rows, -1, x.shape[-1]).float(), dim=-1)
            tasks, rank, n = self.table.shape
            energy = (x @ self.table.view(tasks * rank, n).T).square().unflatten(-1, (tasks, rank)).sum(-1)
        logs = (energy + (UNSEEN if self.lookup else TINY)).log()
        if mask is not None and mask.numel() == logs.shape[0] * logs.shape[1]:
            weight = mask.reshape(rows, -1, 1).to(logs.dtype)
            mean = (logs * weight).sum(1) / weight.sum(1).clamp(min=1)
        else:
            mean = logs.mean(1)
        return mean.masked_fill(self.absent, 0.0)


@dataclass
class EnergyRouter:
    """Routes rows by their energy in each task's subspace at a few early layers.

    names: the tasks; layers: tensor name -> its subspaces; modules: the same names -> modules of the model;
    centre: tensor name -> float32 [tasks], log energies of inputs of no task in particular.
    """

    names: list[str]
    layers: dict[str, Subspaces]
    modules: dict[str, nn.Module] = field(repr=False)
    centre: dict[str, Tensor] = field(default_factory=dict, repr=False)
    sharpness: float = 1.0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        adapters: Mapping[str, Adapter],
        blocks: int = 1,
        rank: int = 32,
        layers: Callable[[str], bool] | None = None,
        sharpness: float = 8.0,
    ) -> "EnergyRouter":
        """A router for a base (or a ``DTSModel``) and adapters {task: Adapter}.

        blocks: how many of the first numbered blocks are looked at; layers: a function of a tensor's name that says
        whether to use it, instead (embeddings tell tasks apart by their tokens, but not where the output layer shares
        their weights: then the tokens a task never has move most); rank: components of each task; sharpness: what
        scores are multiplied by before the softmax that gives the confidence.
        """
        model = base_of(model)
        wanted = layers or (lambda name: block_of(name) in range(blocks))
        found: dict[str, dict[str, Factors]] = {}
        if exact := [task for task, adapter in adapters.items() if adapter.method == LOSSLESS.name]:
            raise ValueError(
                f"the tasks {', '.join(exact)} keep every bit (method exact) and have no components to know them by: "
                "name the task of each row, or compress them with --method residual"
            )
        for task, adapter in adapters.items():
            for entry in adapter.entries.values():
                if isinstance(entry.factors, Factors) and entry.base_name and len(entry.shape) == 2:
                    found.setdefault(entry.base_name, {})[task] = entry.factors
        modules = modules_named(model, [name for name in found if wanted(name)])
        if not modules:
            raise ValueError(f"no compressed matrix of the adapters is in the first {blocks} blocks of the model")
        names = list(adapters)
        subspaces = {name: _subspaces(module, found[name], names, rank) for name, module in modules.items()}
        told = {name: layer for name, layer in subspaces.items() if not layer.absent.all()}
        if not told:
            raise ValueError(
                f"the adapters have samples alone in the first {blocks} blocks of the model and no components to know "
                "them by: compress them with more bytes or with --method residual, or name the task of each row"
            )
        return cls(names, told, {name: modules[name] for name in told}, sharpness=sharpness)

    @property
    def absent(self) -> Tensor:
        """bool [tasks]: those that leave one of the layers alone, or have no components in it."""
        return torch.stack([layer.absent.cpu() for layer in self.layers.values()]).any(0)

    def first_layers(self, model: nn.Module, batch: Mapping[str, Tensor]) -> "EnergyRouter":
        """This router with only the layers that read what the first of its layers reads (`fed_first`).

        Cheaper, and *measured* no less often right than the whole first block (benchmarks/quality/MERGING.md).
        batch: keyword inputs of any content.
        """
        names = fed_first(model, self.modules, batch)
        return replace(
            self, layers={n: self.layers[n] for n in names}, modules={n: self.modules[n] for n in names}, centre={}
        )

    def energies(self, inputs: Mapping[str, Tensor], mask: Tensor | None = None) -> dict[str, Tensor]:
        """Log energies [rows, tasks] of each layer, from the layers' inputs."""
        return {name: layer.energies(inputs[name], mask) for name, layer in self.layers.items()}

    def calibrate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> "EnergyRouter":
        """Take these rows, of no task in particular, as zero: `scrambled` inputs, or unlabelled ones of all tasks."""
        energies = self.energies(layer_inputs(model, self.modules, batch), batch.get("attention_mask"))
        self.centre = {name: energy.mean(0) for name, energy in energies.items()}
        return self

    def scores(self, inputs: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """float32 [rows, tasks] from the layers' inputs."""
        energies = self.energies(inputs, mask)
        relative = [energy - self.centre.get(name, 0.0) for name, energy in energies.items()]
        return self.sharpness * torch.stack(relative).mean(0)

    def route(self, model: nn.Module, batch: Mapping[str, Tensor], floor: float = 0.0) -> Choice:
        """The task of every row of ``model``'s keyword inputs, at the cost of a pass through the early layers."""
        inputs = layer_inputs(model, self.modules, batch)
        return choose(self.scores(inputs, batch.get("attention_mask")), self.names, floor)


def calibrated_router(
    model: nn.Module,
    adapters: Mapping[str, Adapter],
    batch: Mapping[str, Tensor],
    unlabelled: bool = False,
    **options: Any,
) -> EnergyRouter:
    """An `EnergyRouter` (with its options) of the first layers of a base or a ``DTSModel``, calibrated.

    batch: keyword inputs of the model.  Of any content: what is calibrated on is `scrambled` from them; with
    ``unlabelled`` they are inputs of all tasks, in about equal parts, and calibrated on themselves.
    """
    router = EnergyRouter.of(model, adapters, **options).first_layers(model, batch)
    if unlabelled:
        return router.calibrate(model, batch)
    base: Any = model  # one that takes ids has embeddings
    embeddings = base.get_input_embeddings() if "input_ids" in batch else None
    return router.calibrate(model, scrambled(batch, embeddings.num_embeddings if embeddings is not None else 0))


def scrambled(batch: Mapping[str, Tensor], vocabulary: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs like these that mean nothing, to calibrate on without data.

    Token ids become random ones below ``vocabulary``, except each row's first and last (the markers of its start and
    end); of floating-point inputs the elements of each row change places. Masks stay.
    """
    generator = torch.Generator().manual_seed(seed)
    mask, out = batch.get("attention_mask"), dict(batch)
    for name, value in batch.items():
        if name == "input_ids":
            ids = torch.randint(vocabulary, value.shape, generator=generator).to(value.device)
            used = torch.ones_like(value, dtype=torch.bool) if mask is None else mask.bool()
            before, after = (used.long().cumsum(1), used.long().flip(1).cumsum(1).flip(1))
            out[name] = ids.where(used & (before > 1) & (after > 1), value)
        elif value.is_floating_point():
            flat = value.reshape(len(value), -1)
            order = torch.rand(flat.shape, generator=generator).argsort(1).to(value.device)
            out[name] = flat.gather(1, order).view_as(value)
    return out


def _subspaces(module: nn.Module, factors: Mapping[str, Factors], names: list[str], rank: int) -> Subspaces:
    lookup = isinstance(module, nn.Embedding)
    transposed = kind_of(module).transposed
    tables = {task: _table(f, rank, lookup, transposed) for task, f in factors.items() if f.rank}
    if not tables:  # samples alone, which have no subspace
        return Subspaces(torch.zeros(0), lookup, torch.ones(len(names), dtype=torch.bool))
    shape = next(iter(tables.values())).shape
    width = max(t.shape[0] for t in tables.values()) if not lookup else 0
    rows = []
    for task in names:
        table = tables.get(task, torch.zeros(shape))
        rows.append(table if lookup else nn.functional.pad(table, (0, 0, 0, width - table.shape[0])))
    table = torch.stack(rows).to(raw(module, "weight").device)
    return Subspaces(table, lookup, torch.tensor([task not in tables for task in names], device=table.device))


def _table(factors: Factors, rank: int, lookup: bool, transposed: bool) -> Tensor:
    """Scaled subspace [rank, n] of one task, or the energy [ids] of every id of a lookup."""
    factors = factors.low_rank()  # samples have no subspace of their own
    factors = factors.prefix(min(rank, factors.rank))
    u, v = factor_values(factors.packed)
    rows, columns = (factors.rows, factors.columns)
    if lookup or transposed:
        u, v, rows, columns = v, u, columns, rows
    weighted = (v * factors.packed.sigma * u.norm(dim=0)).T  # [rank, n']
    full = weighted.new_zeros(weighted.shape[0], factors.shape[0 if lookup or transposed else 1])
    full[:, slice(None) if columns is None else columns] = weighted
    mean = energy(full) / full.shape[1]
    if lookup:
        return full.square().sum(0) / mean
    return full / max(mean**0.5, 1e-30)
