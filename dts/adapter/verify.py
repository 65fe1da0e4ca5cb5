"""Is an adapter whole, for this base, and as exact as it says?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dts import sums
from dts.adapter.apply import base_mismatches, reconstructed
from dts.adapter.carried import file_problems
from dts.adapter.digests import config_digest, content_digest, row_digest, shown
from dts.adapter.errors import AdapterError
from dts.adapter.folder import CONFIG
from dts.adapter.rows import entry_tensors
from dts.checkpoint import Checkpoint
from dts.checkpoint.names import named_as_loaded
from dts.codec.exact import same_bits
from dts.codec.methods import LOSSLESS

if TYPE_CHECKING:
    from dts.adapter.data import AdapterData

TOLERANCE = 1e-3  # of a squared relative error, or that share of one above 1: float32 sums in another order


@dataclass
class Report:
    """problems: a line each, with the tensor's name, empty if all is well;  errors: {name: (recorded, measured)}
    squared relative error of every tensor both models have, if the fine-tune was given;  bits: how many tensors were
    made anew and are what they were bit for bit, by the fine-tune if it was given, else by a digest over each."""

    problems: list[str] = field(default_factory=list)
    errors: dict[str, tuple[float | None, float]] = field(default_factory=dict)
    bits: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(adapter: AdapterData, base: Checkpoint, finetuned: Checkpoint | None = None) -> Report:
    """Digests of stored tensors, sizes of files, the base's fingerprint, what patches give and, with the fine-tune, the
    errors anew."""
    report = Report([f"base: {line}" for line in base_mismatches(adapter, base)])
    whole = len(report.problems)
    rows, version, found = adapter.config["tensors"], adapter.config["format_version"], list[str]()
    for name, entry in adapter.entries.items():
        found.append(row_digest(name, entry_tensors(entry), rows.get(name, {}), version))
        if name not in rows or shown(found[-1], version) != rows[name]["sha256"]:
            report.problems.append(f"{name}: what is stored of it was altered")
    if len(report.problems) == whole and version >= 5 and content_digest(found) != adapter.config["content"]:
        report.problems.append("what is stored was altered")
    if "sha256" in adapter.config and config_digest(adapter.config) != adapter.config["sha256"]:
        report.problems.append(f"{CONFIG}: it was altered")
    report.problems += file_problems(adapter)
    if report.problems:
        return report
    model = reconstructed(adapter, base)
    if finetuned is None:
        for name, entry in adapter.entries.items():
            if entry.kind == "exact":
                _compare_bits(model, name, None, report)
                model.release(name)
        return report
    if not set(model.names) <= set(finetuned.names):  # saved inside a wrapper, say
        finetuned, _ = named_as_loaded(base, finetuned)
    absent = [name for name in finetuned.names if name not in model.tensors]
    report.problems += [f"{name}: the fine-tune has it, the adapter does not give it" for name in absent]
    for name in model.names:
        _compare(adapter, base, finetuned, model, name, report)
        model.release(name)
        if name in finetuned.tensors:
            finetuned.release(name)
    return report


def _compare_bits(model: Checkpoint, name: str, ours: Tensor | None, report: Report) -> None:
    """ours: the fine-tune's tensor; None: of a patch it is the digest that tells."""
    try:
        made = model.load(name)
    except AdapterError as error:
        report.problems.append(str(error))
        return
    if ours is not None and not same_bits(made, ours):
        report.problems.append(f"{name}: not the fine-tune's, bit for bit")
        return
    report.bits += 1


def _compare(
    adapter: AdapterData, base: Checkpoint, finetuned: Checkpoint, model: Checkpoint, name: str, report: Report
) -> None:
    if name not in finetuned.tensors or finetuned.shape(name) != model.shape(name):
        report.problems.append(f"{name}: not in the fine-tune with shape {list(model.shape(name))}")
        return
    entry, ours = adapter.entries.get(name), finetuned.load(name)
    if adapter.method == LOSSLESS.name or entry is not None and entry.kind == "exact":
        _compare_bits(model, name, ours, report)
        return
    exact = entry is not None and entry.kind in ("delta", "value") and not entry.is_rounded
    if exact or entry is None and name not in adapter.config["dropped"]:
        if not torch.equal(model.load(name), ours):
            report.problems.append(f"{name}: not the fine-tune's value")
        return
    if entry is None:
        report.errors[name] = (1.0, 1.0)
        return
    if entry.kind == "tied" or entry.base_name is None:
        return
    rows = entry.base_shape[0]
    if entry.added_rows is not None and not torch.equal(model.load(name)[rows:], ours[rows:]):
        report.problems.append(f"{name}: added rows are not the fine-tune's")
    delta = sums.difference(ours[:rows], base.load(entry.base_name))
    energy = sums.energy(delta)
    error = sums.squared_difference(delta, entry.delta()) / energy if energy else 0.0
    report.errors[name] = (entry.squared_error, error)
    if entry.squared_error is not None and abs(error - entry.squared_error) > TOLERANCE * max(1, error):
        report.problems.append(f"{name}: squared error {error:.4f}, recorded {entry.squared_error:.4f}")
