"""Is a quantised model the quantised form of the base that an adapter was made for?

An adapter notes a digest of every tensor of its base that it changes.  What quantisation left alone (norms, biases,
embeddings, as a rule) must have that digest; codes are other numbers, unless the adapter was made for just these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from dts.adapter import Adapter
from dts.checkpoint import Checkpoint, sampled_digest
from dts.sites import Site, Target, has_codes, is_quantised, resolve, sites
from dts.sites.transformers import renamer
from dts.sums import energy, squared_difference

LOOKED_AT = 8  # quantised matrices that are compared: making the numbers of all would take as long as a call
SAME_MODEL = 0.25  # the squared relative error of quantisation; 3 bits leave about 0.03, another model 2


@dataclass
class Evidence:
    """Names of the adapter's tensors that were compared: as the adapter notes them, or other ones."""

    equal: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    equal_codes: list[str] = field(default_factory=list)
    other_codes: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether all that was compared is what the adapter was made for, codes too where there are some."""
        return not (self.other or self.other_codes) and bool(self.equal or self.equal_codes)


def evidence(adapter: Adapter, model: nn.Module, rounded: bool = False) -> Evidence:
    """rounded: the model was dequantised while it was loaded, so that its matrices are what codes stood for."""
    found, rows = Evidence(), adapter.config["tensors"]
    noted, base_dtype = {name: row.get("base") for name, row in rows.items()}, adapter.config["base"]["dtype"]
    looked_at = 0
    for name, site, target in _places(adapter, model):
        codes = is_quantised(site.module, site.parameter) or rounded and len(site.shape) > 1
        if noted.get(name) is None or not codes and has_codes(site.tensor):
            continue
        looked_at += codes
        if codes and looked_at > LOOKED_AT:
            continue
        ours = target.part_of(site.numbers).detach().cpu().contiguous()
        same = noted[name] in (sampled_digest(ours), sampled_digest(ours.to(getattr(torch, base_dtype))))
        names = (found.other, found.equal) if not codes else (found.other_codes, found.equal_codes)
        names[same].append(name)
    return found


def differing(adapter: Adapter, model: nn.Module, original: Checkpoint) -> tuple[int, list[str]]:
    """(how many tensors were compared, those that are not what quantisation makes of the original's)."""
    wrong, compared = [], 0
    for name, site, target in _places(adapter, model):
        base_name = adapter.entries[name].base_name
        if compared == LOOKED_AT or base_name not in original.tensors or len(site.shape) < 2:
            continue
        compared += 1
        ours, theirs = target.part_of(site.numbers).detach().cpu(), original.load(base_name)
        if ours.shape != theirs.shape or squared_difference(ours, theirs) > SAME_MODEL * energy(theirs):
            wrong.append(name)
        original.release(base_name)
    return compared, wrong


def _places(adapter: Adapter, model: nn.Module) -> Iterator[tuple[str, Site, Target]]:
    """Where the tensors that the adapter changes, and the base has, are in the model."""
    rename: Callable[[str], Target] = renamer(model)
    known = sites(model)
    entries = {n: e for n, e in adapter.entries.items() if e.base_name is not None and e.kind != "tied"}
    for name, target in resolve(entries, known, rename, []).items():
        if target.pieces > 1:
            continue  # what was noted is of rows that are several parameters here
        yield name, known[target.name], target
