"""One pass of an encoder over rows of any tasks: probabilities of classes, or embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dts.nn import DTSModel
from dts.serve.job import Row, Value
from dts.serve.refused import NotFinite, Refused

Pooling = Literal["mean", "first", "last"]


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device, left: bool = False) -> dict[str, Tensor]:
    """input_ids and attention_mask, both int64 [rows, longest]; left: where the padding is."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.int64)
    for row, own in enumerate(rows):
        where = slice(longest - len(own), longest) if left else slice(0, len(own))
        ids[row, where], mask[row, where] = torch.tensor(own), 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def types_of(model: DTSModel, rows: Sequence[Row], length: int) -> dict[str, Tensor]:
    """token_type_ids, int64 [rows, length], of a model that takes them and rows of which some are of two texts."""
    base: Any = model.model
    if all(row.types is None for row in rows) or "token_type_ids" not in inspect.signature(base.forward).parameters:
        return {}
    types = torch.zeros(len(rows), length, dtype=torch.int64)
    for index, row in enumerate(rows):
        if row.types is not None:
            types[index, : len(row.types)] = torch.tensor(row.types)
    return {"token_type_ids": types.to(model.device)}


@torch.no_grad()
def classify(model: DTSModel, rows: Sequence[Row], pad: int) -> None:
    """Answers each row with the logits of its own task's classes."""
    batch = padded([row.ids for row in rows], pad, model.device)
    batch |= types_of(model, rows, batch["input_ids"].shape[1])
    tasks = [row.choice.selection for row in rows]
    out = model(**batch, tasks=tasks)
    logits = getattr(out, "logits", None)
    if logits is None or logits.dim() != 2:
        raise Refused("this model has no classes: it is not built for sequence classification", param="model")
    for row, own in zip(rows, model.task_logits(logits, tasks)):
        _answer(row, own.float())


@torch.no_grad()
def embed(model: DTSModel, rows: Sequence[Row], pad: int, pooling: Pooling) -> None:
    """Answers each row with its last hidden states, pooled over its own tokens and divided by their norm."""
    batch = padded([row.ids for row in rows], pad, model.device)
    tasks = [row.choice.selection for row in rows]
    # the trunk below the head: rows whose task has no head are embedded too
    states = model.call("base_model", **batch, tasks=tasks).last_hidden_state.float()
    mask = batch["attention_mask"]
    if pooling == "first":
        found = states[:, 0]
    elif pooling == "last":
        found = states[torch.arange(len(rows)), mask.sum(1).cpu() - 1]
    else:
        found = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    for row, own in zip(rows, torch.nn.functional.normalize(found, dim=1)):
        _answer(row, own)


def _answer(row: Row, value: Tensor) -> None:
    if value.isfinite().all():
        row.job.answer(row, Value(row.index, value.tolist()), last=True)
    else:
        row.job.fail(NotFinite())
