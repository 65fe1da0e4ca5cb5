"""What a base model takes, from the headers of its checkpoint and a model without memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from dts.checkpoint import Checkpoint
from dts.sites import Site, Unchanged, resolve, sites
from dts.sites.transformers import renamer


@dataclass(frozen=True)
class BaseSize:
    """Bytes of memory.

    mapped: tensors that stay in the checkpoint's file, whose pages come when they are used;  copied: others of the
    checkpoint;  lacking: parameters that the checkpoint lacks, random until a task brings its own: heads;  buffers: the
    model's own.  converted: bytes of the file that are read to be copied in another dtype, gone afterwards.
    """

    mapped: int = 0
    copied: int = 0
    lacking: int = 0
    buffers: int = 0
    converted: int = 0


def base_size(model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, mappable: bool = True) -> BaseSize:
    """model: empty, as `dts.nn.library.Library.empty_base` makes it;  dtype: of its parameters once loaded;
    mappable: the device reads the file's pages themselves: a CPU."""
    known = sites(model)
    stored = {name: Unchanged(lazy.shape) for name, lazy in checkpoint.tensors.items()}
    targets = resolve(stored, known, renamer(model), [])
    by_target: dict[int, list[str]] = {}
    for name, target in targets.items():
        if name not in checkpoint.tied:
            for one in target.all:
                by_target.setdefault(id(known[one.name].tensor), []).append(name)
    persistent = set(model.state_dict(keep_vars=True))
    sizes = dict.fromkeys(("mapped", "copied", "lacking", "buffers", "converted"), 0)
    for tensor, names in _distinct(known):
        sources = by_target.get(id(tensor), [])
        own = tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.element_size())
        if not sources:
            kind = "lacking" if isinstance(tensor, nn.Parameter) or names & persistent else "buffers"
            sizes[kind] += own
            continue
        found = [checkpoint.tensors[name] for name in sources]
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        as_it_is = len(found) == 1 and found[0].shape == tuple(tensor.shape) and found[0].dtype == wanted
        if as_it_is and mappable and found[0].release is not None:
            sizes["mapped"] += own
        else:
            sizes["copied"] += own
            sizes["converted"] += sum(math.prod(one.shape) * one.dtype.itemsize for one in found if one.release)
    return BaseSize(**sizes)


def quantised_size(model: nn.Module, stored: Checkpoint) -> BaseSize:
    """Of a base whose weights are codes: what its files hold of them is what its library keeps in memory.

    model: empty, of the numbers that the codes stand for;  stored: as its files have it.
    """
    modules = {name.rpartition(".")[0] for name in stored.tensors}
    ends = {path[i:] for path in modules for i in range(len(path)) if i == 0 or path[i - 1] == "."}
    persistent = set(model.state_dict(keep_vars=True))
    lacking = buffers = 0
    for tensor, names in _distinct(sites(model)):
        paths = {name.rpartition(".")[0] for name in names}
        if not isinstance(tensor, nn.Parameter) and not names & persistent:
            buffers += tensor.nbytes
        elif not any(path in ends or any(path.endswith(f".{own}") for own in modules if own) for path in paths):
            lacking += tensor.nbytes
    tensors = [lazy for name, lazy in stored.tensors.items() if name not in stored.tied]
    copied = sum(math.prod(lazy.shape) * lazy.dtype.itemsize for lazy in tensors)
    return BaseSize(copied=copied, lacking=lacking, buffers=buffers)


def _distinct(known: dict[str, Site]) -> list[tuple[torch.Tensor, set[str]]]:
    """Every parameter and buffer once, with its names."""
    found: dict[int, tuple[torch.Tensor, set[str]]] = {}
    for name, site in known.items():
        found.setdefault(id(site.tensor), (site.tensor, set()))[1].add(name)
    return list(found.values())
