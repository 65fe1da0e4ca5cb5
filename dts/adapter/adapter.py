"""The artefact of one task, in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dts.adapter.apply import base_of, check_base, reconstructed
from dts.adapter.carried import check_files
from dts.adapter.data import AdapterData
from dts.adapter.effects import Effects
from dts.adapter.errors import AdapterError
from dts.adapter.folder import Described, complete, read_folder, write_folder
from dts.adapter.in_memory import applied_in_memory
from dts.adapter.options import is_size
from dts.adapter.route import InputStatistics, read_route
from dts.adapter.truncate import truncated
from dts.adapter.verify import Report, verify
from dts.checkpoint import open_checkpoint
from dts.codec.methods import LOSSLESS
from dts.files import expanded


def alone(adapter: Adapter) -> Adapter:
    """The adapter with tensors of their own, so that nothing of a larger one it is a prefix of stays in memory."""
    for name, entry in adapter.entries.items():
        if entry.factorised:
            own = [None if f is None else f.with_tensors(Tensor.clone) for f in entry.matrices]
            adapter.entries[name] = entry.with_matrices(own)
    return adapter


class Adapter(AdapterData):
    """All that turns the base into one fine-tune.

    config: the content of ``dts_config.json``;  model_config: the fine-tune's ``config.json`` if it had one;
    entries: by the fine-tune's tensor names;  folder: where it was loaded from or saved to;
    files: tokenizer files that differ from the base's;  prediction: of the errors, only after a dry run;
    account: what became of every tensor of the two models, only where it was just made;
    inputs: what a router knows of the task's inputs, where it was told (`tell`).
    """

    @classmethod
    @torch.inference_mode(False)  # gradients never pass tensors that are made in it
    def load(cls, path: str | Path, budget: float | None = None, verify: bool = True) -> Adapter:
        """Opens an adapter folder; everything is read into memory and checked before any of it is used.

        budget: keep a prefix of every matrix so that all of it takes at most this fraction of the base in fp32, as
            `truncate` with again=False.
        verify: compare all digests, so that no altered bit goes unnoticed; False where that was done before.
        Raises AdapterError naming all that is missing, altered, out of range or of the wrong kind.
        """
        adapter = loaded(expanded(path), verify)
        return adapter if budget is None else alone(adapter.truncate(budget=budget, again=False))

    def truncate(self, budget: float | None = None, nbytes: int | None = None, again: bool = True) -> Adapter:
        """A smaller adapter, of prefixes of this one's components; exactly one size is given, see `dts.compress`.

        again: where there is a sample too, components are made anew from those there are, which takes about as long as
            `dts.compress` and comes near to what that would give; else the first ones are kept as they are.
        """
        if wrong := [size for size in (budget, nbytes) if size is not None and not is_size(size)]:
            raise ValueError(f"a size is a number above 0, budget= of the base in fp32 or nbytes=, not {wrong[0]!r}")
        if budget is not None and nbytes is None:
            nbytes = int(budget * 4 * self.config["base"]["parameters"])
        elif budget is not None or nbytes is None:
            raise ValueError("give either budget= (a fraction of the base in fp32) or nbytes=")
        if nbytes >= self.nbytes:
            return self
        if self.method == LOSSLESS.name:
            raise ValueError(
                f"{self.name!r} keeps every bit in {self.nbytes} bytes, of which no prefix is a model: dts compress "
                f"the fine-tune again with a budget of {nbytes} bytes"
            )
        return truncated(replace(self, config=copy.deepcopy(self.config), folder=None), nbytes, again)

    def tell(self, inputs: InputStatistics | None) -> None:
        """What a router is to know of the task's inputs (`dts.unseen.input_statistics`), counted in ``nbytes``; None:
        nothing."""
        self.inputs = inputs
        complete(self)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes the folder, whole or not at all."""
        return write_folder(self, expanded(path), overwrite)

    def on(self, base, check: bool = True):
        """The reconstructed fine-tune as a `Checkpoint` whose tensors are made when they are loaded.

        base: anything `open_checkpoint` takes;  check: refuse a base that is not the adapter's (Mismatch).
        """
        base = base_of(self, base)
        if check:
            check_base(self, base)
        return reconstructed(self, base)

    def apply(self, base, check: bool = True) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the reconstructed fine-tune, one at a time; ``dict(adapter.apply(base))`` is a state dict.

        Of a base in memory (an ``nn.Module``, or its state dict) the names are those of that model, whatever its
        checkpoint calls them, so that it takes them by ``load_state_dict(strict=True)``; heads that it lacks come
        beside under the fine-tune's names, and if the adapter was made against such a state dict itself all names are
        the fine-tune's then.  Of a folder, a file or a hub id they are those of the fine-tune's checkpoint.
        Raises Mismatch as `on` does, NoEffect at the end if nothing that should have changed did.
        """
        if isinstance(base, (nn.Module, Mapping)):
            return applied_in_memory(self, base, check)
        return self._applied(base_of(self, base), check)

    def _applied(self, base, check: bool) -> Iterator[tuple[str, Tensor]]:
        checkpoint, effects = self.on(base, check), Effects(self, base)

        def tensors():
            for name in checkpoint.names:
                yield name, effects.see(name, checkpoint.load(name))
            effects.check()

        return tensors()

    def verify(self, base, finetuned=None) -> Report:
        """Is every stored byte what was written, is this the base, and is the error what was recorded?"""
        return verify(self, base_of(self, base), None if finetuned is None else open_checkpoint(finetuned))


def loaded(folder: Path, verify: bool = True, described: Described | None = None) -> Adapter:
    """`Adapter.load`, all of it.  described: as for `read_folder`."""
    config, entries = read_folder(folder, verify, described)
    adapter = Adapter.of(config, entries, folder, {name: folder / name for name in config["files"]})
    adapter.inputs = read_route(folder, config.get("sha256"), verify)
    if verify:
        check_files(adapter)
    return adapter


def load_same(folder: Path, digest: str, otherwise: str) -> Adapter:
    """The adapter of a folder, checked whole, if it is still the one that had this `Adapter.digest`.

    otherwise: what to do where another one is there.  Raises AdapterError, OSError.
    """
    found = Adapter.load(folder)
    if found.digest != digest:
        raise AdapterError(f"{folder} holds another adapter than when it was first asked for: {otherwise}")
    return found
