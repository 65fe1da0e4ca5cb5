"""Opens a model wherever it is, and refuses by name what is none."""

from collections.abc import Mapping
from pathlib import Path

import torch

from dts.checkpoint.checkpoint import Checkpoint
from dts.checkpoint.dequantised import from_gguf, from_quantised, from_quantised_folder
from dts.checkpoint.errors import CheckpointError, NotRead, Quantised, some
from dts.checkpoint.files import PICKLES, from_file, split_state
from dts.checkpoint.folder import checkpoints_in, from_folder, has_weights, own_weights
from dts.checkpoint.foreign import is_gguf
from dts.checkpoint.hub import ID, no_revision, snapshot, split_revision, split_subfolder
from dts.checkpoint.kinds import check_kind
from dts.checkpoint.sentence import from_modules
from dts.checkpoint.state import from_module, from_tensors
from dts.checkpoint.trainer import best_or_last
from dts.files import expanded
from dts.warn import warn


def open_checkpoint(
    source,
    revision: str | None = None,
    *,
    subfolder: str = "",
    variant: str | None = None,
    dequantise: bool = False,
    **hub,
) -> Checkpoint:
    """Opens a model without reading it.

    source: a Hugging Face folder (``model.safetensors``, sharded safetensors, ``pytorch_model.bin`` whole or
    sharded), a sub-model of diffusers, a sentence-transformers folder with all its modules, a trainer's run (the best
    or last of the checkpoints in it, with a `NotRead` warning that names it), one ``.safetensors``/``.bin``/``.pt``
    file (``#name`` behind it says which of several states, ``#outer.inner`` one further in), a state dict, an
    ``nn.Module``, a `Checkpoint`, or a hub id, ``id/subfolder`` or ``id@revision`` (needs huggingface_hub and either
    the network or its cache).
    Pickles are read with ``weights_only=True`` only.
    revision: branch, tag or commit of a hub id ("main" says nothing, of a folder too);  subfolder, variant: as
        transformers' ``from_pretrained`` has them;
    dequantise: open a quantised model (and a GGUF file) as the numbers it computes with, by the library of its method;
        a model that is not quantised is opened as ever.
    hub: cache_dir, token, local_files_only, force_download, proxies; others are left alone.
    Raises CheckpointError saying what was looked for and what there is, or what the source is that is no full
    floating-point model (quantised, an adapter, an optimizer's state, another program's file) and the way to go on.
    """
    if not isinstance(source, str | Path):
        given = {"revision": revision, "subfolder": subfolder, "variant": variant}
        if said := [f"{key}={value!r}" for key, value in given.items() if value not in (None, "", "main")]:
            raise CheckpointError(
                f"{' and '.join(said)}: of a model on disk or a hub, not of a {type(source).__name__}"
            )
    if isinstance(source, Checkpoint):
        return source
    if not isinstance(source, str | Path | torch.nn.Module | Mapping):
        raise CheckpointError(
            f"a model is a folder, a file, a hub id, a module or a state dict, not a {type(source).__name__}"
        )
    if dequantise:
        return _open_dequantised(source, revision, subfolder, variant, hub)
    checkpoint = _stored(source, revision, subfolder, variant, hub)
    check_kind(checkpoint.source, checkpoint.tensors, checkpoint.config)
    return checkpoint


def open_stored(
    source, revision: str | None = None, *, subfolder: str = "", variant: str | None = None, **hub
) -> tuple[Checkpoint, str]:
    """Opens a model on disk that may be quantised, codes as they are stored; and why it is taken for quantised, or
    nothing.

    Raises CheckpointError for what `open_checkpoint` refuses for another reason.
    """
    checkpoint = _stored(source, revision, subfolder, variant, hub)
    try:
        check_kind(checkpoint.source, checkpoint.tensors, checkpoint.config)
    except Quantised as error:
        return checkpoint, str(error)
    return checkpoint, ""


def _stored(source, revision: str | None, subfolder: str, variant: str | None, hub: dict) -> Checkpoint:
    """All that a source holds, whatever kind of tensors these are."""
    if isinstance(source, torch.nn.Module):
        return from_module(source)
    if isinstance(source, Mapping):
        return from_tensors(source, "state dict")
    return _from_path(str(source), revision, subfolder, variant, hub)


def _open_dequantised(source, revision: str | None, subfolder: str, variant: str | None, hub: dict) -> Checkpoint:
    if isinstance(source, torch.nn.Module):
        checkpoint = from_quantised(source)
        check_kind(checkpoint.source, checkpoint.tensors, None)
        return checkpoint if checkpoint.quantised else open_checkpoint(source)
    if isinstance(source, str | Path) and (path := expanded(source) / subfolder).is_file() and is_gguf(path):
        return from_gguf(path)
    stored = _stored(source, revision, subfolder, variant, hub)
    try:
        check_kind(stored.source, stored.tensors, stored.config)
        return stored
    except Quantised:
        if stored.folder is None:
            raise  # nothing that a library could load
    checkpoint = from_quantised_folder(stored.folder, stored.config, variant)
    checkpoint.source, checkpoint.folder, checkpoint.revision = stored.source, stored.folder, stored.revision
    check_kind(checkpoint.source, checkpoint.tensors, checkpoint.config)
    return checkpoint


def _from_path(source: str, revision: str | None, subfolder: str, variant: str | None, hub: dict) -> Checkpoint:
    path = expanded(source) / subfolder
    if path.exists() or expanded(split_state(source)[0]).is_file():
        no_revision(source, revision)
    if path.is_dir():
        return _from_folder(path, variant)
    if path.is_file():
        return from_file(path)
    file, select = split_state(source)
    if select is not None:
        return from_file(expanded(file), select)
    name, stated = split_revision(source)
    if stated and revision and stated != revision:
        raise CheckpointError(f"{source} and revision={revision!r} say the revision twice: keep one")
    repository, subfolder = split_subfolder(name, subfolder)
    if ID.fullmatch(repository) and path.suffix.lower() not in (".safetensors", *PICKLES):
        folder, commit = snapshot(repository, stated or revision, hub, subfolder)
        if not folder.is_dir():
            raise CheckpointError(f"{repository} has no folder {subfolder}")
        checkpoint = _from_folder(folder, variant)
        checkpoint.source, checkpoint.revision = name, commit
        return checkpoint
    raise CheckpointError(f"there is no checkpoint at {source}: no such folder or file, and it is no hub id (org/name)")


def _from_folder(folder: Path, variant: str | None) -> Checkpoint:
    if (folder / "modules.json").is_file():
        return from_modules(folder, variant)
    inside = [] if variant else checkpoints_in(folder)
    if inside and not has_weights(folder):
        if own := own_weights(folder):
            raise CheckpointError(
                f"{folder} has weights of its own that are no whole model as transformers writes one, {some(own)}, and "
                f"{some(path.name for path in inside)} inside it: give the file or the folder that you mean"
            )
        chosen, why = best_or_last(inside)
        checkpoint = _from_folder(chosen, None)
        others = [path.name for path in inside if path != chosen]
        note = f"{folder} has no weights of its own: {chosen.name} inside it was read, {why}"
        checkpoint.source = str(folder)
        _noted(checkpoint, note + (f" ({some(others)} were not); to take another, give its folder" if others else ""))
        return checkpoint
    checkpoint = from_folder(folder, variant)
    if inside:
        _noted(checkpoint, f"{folder}: its own weights were read, and {some(p.name for p in inside)} inside it not")
    return checkpoint


def _noted(checkpoint: Checkpoint, note: str) -> None:
    checkpoint.notes.append(note)
    warn(note, NotRead)
