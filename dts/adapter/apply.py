"""Base + adapter -> the reconstructed fine-tune, tensor by tensor, and as a checkpoint folder."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dts.adapter.accounting import of_model
from dts.adapter.carried import check_files, copy_files
from dts.adapter.code import copy_code, with_code_of
from dts.adapter.effects import Effects
from dts.adapter.entries import Entry, rounded
from dts.adapter.folder import CONFIG
from dts.adapter.modules import by_part, modules_of, write_modules
from dts.adapter.text import dtype_name
from dts.adapter.tokenizer import text_files
from dts.checkpoint import Checkpoint, Lazy, Mismatch, fingerprint, open_checkpoint, sampled_digest, write_safetensors
from dts.checkpoint.folder import stem_of
from dts.checkpoint.prefixes import swap_prefix
from dts.checkpoint.safetensors_file import Layout
from dts.checkpoint.sentence import MODULES
from dts.files import Watch, building, check_place, expanded, real

if TYPE_CHECKING:
    from dts.adapter.data import AdapterData

SHARD_BYTES = 5 * 10**9


def base_of(adapter: AdapterData, base) -> Checkpoint:
    """`open_checkpoint`, of a quantised base as numbers for an adapter that was made for those."""
    return open_checkpoint(base, dequantise="quantised" in adapter.config["base"])


def check_base(adapter: AdapterData, base: Checkpoint) -> None:
    """Raises Mismatch listing every difference between this base and the one the adapter was made for."""
    wrong = base_mismatches(adapter, base)
    if wrong:
        about = adapter.config["base"]
        way = f"It was made for {about['name']} (fingerprint {about['fingerprint']}): give that, in the same dtype"
        raise Mismatch(f"{base.source} is not the base of the adapter {adapter.name!r}", wrong, way)


def base_mismatches(adapter: AdapterData, base: Checkpoint) -> list[str]:
    """A line for each difference; empty for the right base."""
    config = adapter.config
    theirs = fingerprint(base)
    if theirs == config["base"]["fingerprint"]:
        return misfits(adapter, base)
    wrong = []
    for name, entry in adapter.entries.items():
        if entry.base_name is None or entry.kind == "tied":
            continue
        if lacking := _lacking(entry, base):
            wrong.append(lacking)
        elif sampled_digest(base.load(entry.base_name)) != config["tensors"][name]["base"]:
            dtype = dtype_name(base.dtype(entry.base_name))
            wrong.append(f"{entry.base_name}: other values ({dtype})")
    if not wrong:
        wrong.append(
            f"fingerprint {theirs}, not {config['base']['fingerprint']}: tensors that the adapter "
            "does not change have other names, shapes or values"
        )
    return wrong


def _lacking(entry, base: Checkpoint) -> str | None:
    """Why the base has no tensor of the shape that an entry changes; None if it has."""
    if entry.base_name not in base.tensors:
        return f"{entry.base_name}: missing"
    if base.shape(entry.base_name) != entry.base_shape:
        return f"{entry.base_name}: shape {list(base.shape(entry.base_name))}, not {list(entry.base_shape)}"
    return None


def misfits(adapter: AdapterData, base: Checkpoint) -> list[str]:
    """A line for all that the adapter says of tensors that cannot be, even if this is its base."""
    section, wrong = adapter.config["finetuned"], []
    for entry in adapter.entries.values():
        if entry.base_name is None or entry.kind == "tied":
            continue
        if lacking := _lacking(entry, base):
            wrong.append(lacking)
        elif base.dtype(entry.base_name).is_floating_point != entry.dtype.is_floating_point:
            wrong.append(f"{entry.base_name}: {base.dtype(entry.base_name)}, {entry.dtype} in the fine-tune")
    wrong += [
        f"{base_name}: missing, {name} is said to come from it"
        for name, base_name in section["renamed"].items()
        if base_name not in base.tensors
    ]
    wrong += [
        f"{name}: missing, the fine-tune is said to lack it"
        for name in section["base_only"]
        if name not in base.tensors
    ]
    if wrong:
        return wrong
    origins = _unchanged(adapter, base)
    tied = {name: e.tied_to for name, e in adapter.entries.items() if e.kind == "tied"}
    known = {name for name, _ in origins} | adapter.entries.keys() - tied.keys()
    shapes = {name: base.shape(origin) for name, origin in origins}
    shapes |= {name: entry.shape for name, entry in adapter.entries.items() if name not in tied}
    if len(origins) != len({name for name, _ in origins}):
        wrong.append("two tensors of the base would have one name in the fine-tune")
    for name, owner in tied.items():
        if owner not in known:
            wrong.append(f"{name}: tied to {owner}, which there is not")
        elif shapes[owner] != adapter.entries[name].shape:
            wrong.append(f"{name}: shape {list(adapter.entries[name].shape)}, tied to {list(shapes[owner])}")
    for name, origin in origins:
        dtype = section["dtypes"].get(name)
        if dtype is not None and getattr(torch, dtype).is_floating_point != base.dtype(origin).is_floating_point:
            wrong.append(f"{name}: {dtype} in the fine-tune, {base.dtype(origin)} in the base")
    return wrong


def _unchanged(adapter: AdapterData, base: Checkpoint) -> list[tuple[str, str]]:
    """(fine-tune's name, base's) of every tensor without an entry."""
    section = adapter.config["finetuned"]
    by_base: dict[str, list[str]] = {}
    for name, base_name in section["renamed"].items():
        by_base.setdefault(base_name, []).append(name)
    left = set(section["base_only"])
    return [
        (name, base_name)
        for base_name in base.names
        if base_name not in left and base_name not in base.tied
        for name in by_base.get(base_name, [swap_prefix(base_name, section["base_prefix"], section["prefix"])])
        if name not in adapter.entries
    ]


def reconstructed(adapter: AdapterData, base: Checkpoint) -> Checkpoint:
    """The fine-tune as a checkpoint of tensors that are made when they are loaded."""
    section = adapter.config["finetuned"]
    main, base_main = getattr(torch, section["dtype"]), base.main_dtype
    tensors: dict[str, Lazy] = {}
    for name, base_name in _unchanged(adapter, base):
        dtype = base.dtype(base_name)
        dtype = getattr(torch, section["dtypes"].get(name, dtype_name(main if dtype == base_main else dtype)))
        tensors[name] = Lazy(
            base.shape(base_name),
            dtype,
            partial(_loaded, base, base_name, dtype, name),
            partial(base.release, base_name),
        )
    tied: dict[str, str] = {}
    for name, entry in adapter.entries.items():
        if entry.kind != "tied":
            tensors[name] = Lazy(
                entry.shape,
                entry.dtype,
                partial(_applied, base, entry),
                None if entry.base_name is None else partial(base.release, entry.base_name),
            )
    for name, entry in adapter.entries.items():
        if entry.tied_to is not None:
            tensors[name], tied[name] = tensors[entry.tied_to], entry.tied_to
    config = with_code_of(base.config, adapter.model_config) or base.config
    modules = adapter.config.get("modules")
    return Checkpoint(
        f"{base.source} + {adapter.name}",
        tensors,
        tied,
        config,
        base.folder,
        base.revision,
        base.parts if modules is None else modules["parts"],
    )


def _applied(base: Checkpoint, entry: Entry) -> torch.Tensor:
    return entry.apply(None if entry.base_name is None else base.load(entry.base_name))


def _loaded(base: Checkpoint, base_name: str, dtype: torch.dtype, name: str) -> torch.Tensor:
    """The base's tensor in the fine-tune's dtype; name: the fine-tune's."""
    tensor = base.load(base_name)
    return tensor if tensor.dtype == dtype else rounded(tensor, dtype, name)


def write_checkpoint(
    base, adapter: AdapterData, out: str | Path, overwrite: bool = False, shard_bytes: int = SHARD_BYTES, progress=None
) -> Path:
    """Writes the reconstructed fine-tune as a Hugging Face folder that transformers loads.

    Weights in the fine-tune's dtypes, in shards of at most ``shard_bytes``; its config; the base's code where the base
    has code of its own; tokenizer files from the base's folder and, where they differ, the adapter's.  One tensor in
    memory at a time; whole or not at all.
    Raises Unaccounted for tensors of which nothing is known, NoEffect if what the adapter changes came out as the base.
    overwrite: replace a model at ``out`` once the new one is whole; what is not a model's folder is never replaced.
    progress(done, total, name) in bytes.
    """
    watch, out = Watch(base, adapter.folder), expanded(out)
    base = base_of(adapter, base)
    check_files(adapter)
    check_base(adapter, base)
    model = reconstructed(adapter, base)
    of_model(adapter, base, model)
    modules = adapter.config.get("modules")
    modules = modules_of(base) if modules is None else modules
    with building(out, lambda: check_target(out, base, adapter, overwrite)) as place:
        partial, effects = place.fresh(), Effects(adapter, base)
        write_modules(modules, partial)
        own = partial / model.part_of("")[0]  # of the transformer, where the model has several modules
        own.mkdir(parents=True, exist_ok=True)
        _write_weights(model, partial, shard_bytes, progress, effects.see)
        effects.check()
        if model.config is not None:
            (own / "config.json").write_text(json.dumps(model.config, indent=2) + "\n", "utf-8")
        for file in text_files(base.folder) if base.folder is not None else ():
            shutil.copyfile(file, own / file.name)
        copy_files(adapter, own)
        copy_code(base, own)
        watch.check()
        place.finish()
    return out


def check_target(out: Path, base: Checkpoint, adapter: AdapterData, overwrite: bool) -> None:
    """Raises FileExistsError unless ``out`` may become the model's folder, whatever it holds being deleted then."""
    target, file = real(out), Path(base.source)
    sources = {"base": base.folder or (file if file.is_file() else None), "adapter": adapter.folder}
    for what, source in sources.items():
        source = source and real(source)
        if source and (target == source or target in source.parents or source in target.parents):
            raise FileExistsError(f"{out} is, holds or lies in the {what} itself, {source}: choose another folder")
    check_place(out, overwrite, "a model", _is_model)


def _is_model(folder: Path) -> bool:
    """Are a model's weights in it?"""
    weights = [file for pattern in ("*.safetensors", "pytorch_model*.bin") for file in folder.glob(pattern)]
    if (folder / MODULES).is_file():
        weights += folder.glob("*/*.safetensors")
    return bool(weights) and not (folder / CONFIG).exists()


def _write_weights(model: Checkpoint, folder: Path, shard_bytes: int, progress, see) -> None:
    done, total = 0, sum(_bytes(model, name) for name in model.names)
    for inner, names in by_part(model, model.names).items():

        def load(name: str, names=names):
            nonlocal done
            tensor = see(names[name], model.load(names[name]))
            done += tensor.nbytes
            if progress is not None:
                progress(done, total, names[name])
            return tensor

        (folder / inner).mkdir(parents=True, exist_ok=True)
        _write_shards(model, names, folder / inner, shard_bytes, load, stem_of(model.config))


def _bytes(model: Checkpoint, name: str) -> int:
    return torch.Size(model.shape(name)).numel() * model.dtype(name).itemsize


def _write_shards(
    model: Checkpoint, names: dict[str, str], folder: Path, shard_bytes: int, load, stem: str = "model"
) -> None:
    """names: in the files -> in the model;  stem: of the files' names."""
    shards: list[Layout] = [{}]
    size = 0
    for written, name in names.items():
        nbytes = _bytes(model, name)
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][written] = (model.dtype(name), model.shape(name))
        size += nbytes
    where: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, load, {"format": "pt"}, lambda inner: model.release(names[inner]))
        where |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(_bytes(model, name) for name in names.values())}, "weight_map": where}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
