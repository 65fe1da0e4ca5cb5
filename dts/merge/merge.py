"""Merge many models into one, one tensor at a time."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dts.adapter.account import Account
from dts.files import Watch, check_free, expanded
from dts.values import shown

from . import methods  # noqa: F401  (fills the registry)
from .folder import write_folder
from .outcome import Outcome
from .registry import METHODS, complete
from .registry import method as method_named
from .sources import Sources
from .tensor import TensorInfo


def merge(
    base,
    finetunes,
    method: str = "average",
    out: str | Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    exclude=(),
    progress: Callable[[int, int, str], None] | None = None,
    account: Callable[[Account], None] | None = None,
    dry_run: bool = False,
    **options,
):
    """Merge fine-tunes into one model theta_m = theta_0 + merged delta.

    base: the pretrained model, or None for methods that need none ("average"); finetunes: a list. Each is anything
    ``dts.checkpoint.open_checkpoint`` opens. method, options: see ``dts.merge.table()``. out: a folder to write, that
    must not exist or be empty. dtype: of the merged tensors (default: the base's). seed: of random methods. exclude:
    patterns (re) of tensors that stay the base's. progress(done, total, name) is called after every tensor;
    account(what became of every tensor of every model) at the end.  dry_run: merge every tensor and keep none; the
    account, warnings and errors are the merge's own, and the bytes of all tensors that it would write are returned.

    Memory: one tensor of every model at a time. Sums run in float32 (float64 for float64 models). Heads that only
    fine-tunes have are not merged: they are each task's own; without a base, classification heads are left out. Rows
    that one model added to the vocabulary are kept as they are, with its tokenizer and the size in the config; where
    several models added rows for the same tokens (equally many, one tokenizer) their mean is, else that is refused.

    Warns `NotMerged` of tensors that the merged model has not, `LeftAtBase` of those that come out as the base's
    although models differ there.
    Returns the path of ``out``, a folder that transformers (or sentence-transformers) loads: weights, config,
    tokenizer, and a card with the method and all its options; without ``out`` the merged state dict.
    Raises ValueError for unknown methods and options, ``dts.checkpoint.Mismatch`` with every mismatch of every model,
    `NoEffect` for models that equal the base and where nothing that differs comes out changed.
    """
    chosen = method_named(method)
    options = complete(chosen, options)
    if base is None and chosen.needs_base:
        free = ", ".join(m.name for m in METHODS.values() if not m.needs_base)
        raise ValueError(f"{method} merges differences to a base, so it needs one; without a base: {free}")
    out = None if out is None else expanded(out)
    if out is not None and not dry_run:
        check_free(out)
    watch = Watch(base, *finetunes)
    sources = Sources.open(base, finetunes, exclude)
    prepared = chosen.prepare(lambda: sources.stream(seed), **options) if chosen.prepare else {}

    def merged(name: str) -> Tensor:
        """The merged model's tensor."""
        kept = dtypes[name]
        if name not in to_merge:
            return sources.reference.load(name).to(kept)
        deltas = sources.deltas(name)
        moved = [bool(delta.any()) for delta in deltas]
        outcome.differ[name] = moved
        if sources.base is not None and not any(moved):  # often the embeddings: half of a small model
            return sources.base.load(name).to(kept)
        try:
            delta = chosen.function(deltas, TensorInfo(name, seed, prepared), **options)
        except torch.linalg.LinAlgError as error:
            raise ValueError(f"merging by {method} has no result for {name}: {error}; look at its options") from error
        result = (delta if sources.base is None else delta.add_(sources.base.load(name))).to(kept)
        if not bool(result.isfinite().all()):
            check_numbers(name, result)
        outcome.compare(name, sources.reference.load(name).to(kept), result)
        return result

    def check_numbers(name: str, result: Tensor) -> None:
        """Raises ValueError for elements that are no numbers where all models have some (masks are infinite)."""
        finite = sources.deltas(name).isfinite().all(0) & sources.reference.load(name).isfinite()
        if lost := int((finite & ~result.isfinite()).sum()):
            raise ValueError(
                f"merging by {method} gives {lost} elements of {name} that are no numbers, or too large for "
                f"{str(result.dtype).removeprefix('torch.')}: look at its options, {shown(options)}"
            )

    def loaded(name: str) -> Tensor:
        value = sources.with_added_rows(name, merged(name))
        done.append(name)
        if progress:
            progress(len(done), len(names), name)
        if len(done) == len(names):
            found = outcome.account(chosen.name)
            if account:
                account(found)
        return value

    outcome = Outcome(sources)
    names, to_merge = sources.written(), set(sources.merged)
    done: list[str] = []
    stored = {name: sources.reference.dtype(name) for name in names}
    dtypes = {name: dtype or was if was.is_floating_point else was for name, was in stored.items()}
    if dry_run:
        for name in names:
            loaded(name)
            sources.reference.release(name)
        return sum(torch.Size(sources.shape(name)).numel() * dtypes[name].itemsize for name in names)
    if out is None:
        state = {name: loaded(name) for name in names}
        return state | {tied: state[name] for tied, name in sources.reference.tied.items() if name in state}
    layout = {name: (dtypes[name], sources.shape(name)) for name in names}
    return write_folder(out, sources, layout, loaded, chosen, options, seed, watch)
