"""Which task an input belongs to, from what its adapters know of their inputs (`dts.adapter.route`).

Of what one early layer is given, the mean, the largest and the smallest over tokens (`summary`) are taken for normally
distributed around each task's mean, with one covariance for all tasks: linear discriminant analysis, whose score of x
for task t is

    (x - m)ᵀ C⁻¹ (mu_t - m) - (mu_t - m)ᵀ C⁻¹ (mu_t - m) / 2          m: the mean of all mu_t

C is the mean of the tasks' covariances, half of it replaced by its trace's share of each coordinate: with few examples
the small variances are far off (Ledoit and Wolf, doi:10.1016/S0047-259X(03)00096-4).  It is a diagonal and a few
directions a task, so that its inverse takes a system of as many equations as there are directions (Woodbury).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dts.adapter import Adapter
from dts.adapter.route import InputStatistics
from dts.warn import warn

from .choice import Choice, choose
from .passes import layer_inputs
from .places import base_of, modules_named
from .router import EnergyRouter, calibrated_router
from .statistics import missing_statistics, summary

SHRINKAGE = 0.5  # chosen, as SHARPNESS, on tasks that are in no table (benchmarks/quality/MERGING.md)
SHARPNESS = 0.2  # of the scores, beside those of energies: neighbouring tokens are no independent evidence


@dataclass
class LikelihoodRouter:
    """Routes rows by how likely a task has such inputs, and by energies where every task has those.

    names: the tasks;  layer, module: what is looked at, its weight's name and the module in the model;
    weight: float32 [tasks, n] and bias [tasks], of the input less ``origin`` [n];  energies: an `EnergyRouter`.
    """

    names: list[str]
    layer: str
    module: nn.Module = field(repr=False)
    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    origin: Tensor = field(repr=False)
    energies: EnergyRouter | None = None

    @classmethod
    def of(cls, model: nn.Module, adapters: Mapping[str, Adapter]) -> LikelihoodRouter:
        """A router for a base (or a ``DTSModel``) and adapters {task: Adapter} that all have ``inputs``.

        Raises ValueError where they are of several layers, or of one that the model does not have.
        """
        known = {task: adapter.inputs for task, adapter in adapters.items() if adapter.inputs is not None}
        layers = {task: (one.layer, one.width) for task, one in known.items()}
        if len(known) < len(adapters) or len(set(layers.values())) != 1:
            said = ", ".join(f"{task}: {layers.get(task, 'nothing')}" for task in adapters)
            raise ValueError(f"the adapters do not know the same layer's inputs ({said}): dts route makes them alike")
        layer, width = next(iter(layers.values()))
        module = modules_named(base_of(model), [layer]).get(layer)
        if module is None:
            raise ValueError(f"the model has no layer {layer!r}, whose inputs the adapters know {width} numbers of")
        return cls(list(known), layer, module, *discriminant(list(known.values())))

    def scores(self, inputs: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """float32 [rows, tasks] from the layers' inputs, of which this layer's is called ""."""
        x = summary(inputs[""], mask)
        weight, bias, origin = (t.to(x.device) for t in (self.weight, self.bias, self.origin))
        own = SHARPNESS * ((x - origin) @ weight.T + bias)
        return own if self.energies is None else own + self.energies.scores(inputs, mask)

    def route(self, model: nn.Module, batch: Mapping[str, Tensor], floor: float = 0.0) -> Choice:
        """The task of every row of ``model``'s keyword inputs, at the cost of a pass through the early layers."""
        others = {} if self.energies is None else self.energies.modules
        inputs = layer_inputs(model, {"": self.module, **others}, batch)
        return choose(self.scores(inputs, batch.get("attention_mask")), self.names, floor)


def discriminant(tasks: list[InputStatistics]) -> tuple[Tensor, Tensor, Tensor]:
    """(weight [tasks, n], bias [tasks], origin [n]), float32, of the score (x - origin) weightᵀ + bias."""
    means = torch.stack([task.mean.double() for task in tasks])
    origin = means.mean(0)
    means -= origin
    variance = torch.stack([task.left for task in tasks]).mean(0)
    factor = torch.cat([task.directions for task in tasks]) / len(tasks) ** 0.5  # [directions, n]
    level = (variance.sum() + factor.square().sum()) / len(variance)
    diagonal = (1 - SHRINKAGE) * variance + SHRINKAGE * level
    factor = factor * (1 - SHRINKAGE) ** 0.5
    whitened = factor / diagonal
    small = torch.eye(len(factor), dtype=factor.dtype) + whitened @ factor.T
    weight = means / diagonal - torch.linalg.solve(small, whitened @ means.T).T @ whitened
    bias = -(weight * means).sum(1) / 2
    return weight.float(), bias.float(), origin.float()


def task_router(
    model: nn.Module, adapters: Mapping[str, Adapter], batch: Mapping[str, Tensor], unlabelled: bool = False
) -> LikelihoodRouter | EnergyRouter:
    """What ``tasks="auto"`` chooses by: what the adapters know of their inputs and the energies of their components,
    or that of both which all of them have.  Arguments are those of `calibrated_router`.

    Warns where some adapters know their inputs and others do not.
    Raises ValueError that says what is missing where there is neither.
    """
    unknown = missing_statistics(adapters)
    try:
        energies = calibrated_router(model, adapters, batch, unlabelled)
    except ValueError as error:
        if unknown:
            raise ValueError(f"{error}; dts route tells the adapters of {', '.join(unknown)} from examples") from None
        return LikelihoodRouter.of(model, adapters)
    absent = [task for task, gone in zip(energies.names, energies.absent.tolist()) if gone]
    if unknown and absent:
        raise ValueError(
            f"the adapters of {', '.join(absent)} have no components in the first block: dts route tells those of "
            f"{', '.join(unknown)} from examples of their inputs"
        )
    if unknown:
        if len(unknown) < len(adapters):
            warn(
                f"the adapters of {', '.join(unknown)} know nothing of their inputs, so that what the others know is "
                "not used to choose tasks: dts route adds it"
            )
        return energies
    router = LikelihoodRouter.of(model, adapters)
    return router if absent else replace(router, energies=energies)
