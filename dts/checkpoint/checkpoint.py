"""Models on disk or in memory, read one tensor at a time."""

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dts.checkpoint.safetensors_file import SafetensorsFile

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                "pytorch_model.bin.index.json")  # fmt: skip
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class CheckpointError(ValueError):
    """A source that cannot be read as a model."""


@dataclass(frozen=True)
class Lazy:
    """One tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]
    release: Callable[[], None] | None = None


@dataclass
class Checkpoint:
    """A model as named tensors, each read when asked for.

    tied: name -> the first name that shares its storage;  config: ``config.json`` as a dict, if there is one;
    folder: where tokenizer and configuration lie, if it is a folder;  revision: of a hub id.
    """

    source: str
    tensors: dict[str, Lazy] = field(repr=False)
    tied: dict[str, str] = field(default_factory=dict)
    config: dict | None = field(default=None, repr=False)
    folder: Path | None = None
    revision: str | None = None

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def load(self, name: str) -> Tensor:
        """The tensor, on the CPU.  It may be a view on a mapped file or on the model itself: do not write to it."""
        return self.tensors[name].load()

    def release(self, name: str) -> None:
        """Gives back the memory of a tensor that was read from a mapped file, after use; it can be loaded again."""
        release = self.tensors[name].release
        if release is not None:
            release()

    @property
    def parameters(self) -> int:
        """Elements of all floating-point tensors, tied ones once."""
        return sum(
            torch.Size(t.shape).numel() for name, t in self.tensors.items()
            if t.dtype.is_floating_point and name not in self.tied
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in their stored dtypes, tied ones once."""
        return sum(torch.Size(t.shape).numel() * t.dtype.itemsize
                   for name, t in self.tensors.items() if name not in self.tied)  # fmt: skip

    @property
    def main_dtype(self) -> torch.dtype:
        """The floating-point dtype most elements have (float32 if there are none)."""
        counts: dict[torch.dtype, int] = {}
        for t in self.tensors.values():
            if t.dtype.is_floating_point:
                counts[t.dtype] = counts.get(t.dtype, 0) + torch.Size(t.shape).numel()
        return max(counts, key=counts.get) if counts else torch.float32


def open_checkpoint(source, revision: str | None = None) -> Checkpoint:
    """Opens a model without reading it.

    source: a Hugging Face folder (``model.safetensors``, sharded safetensors, ``pytorch_model.bin`` whole or
    sharded), one ``.safetensors``/``.bin``/``.pt`` file, a state dict, an ``nn.Module``, a `Checkpoint`, or a hub id
    (needs huggingface_hub and either the network or its cache).  Pickles are read with ``weights_only=True`` only.
    Raises CheckpointError saying what was looked for and what there is.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, torch.nn.Module):
        checkpoint = _from_tensors(source.state_dict(), type(source).__name__)
        config = getattr(source, "config", None)
        checkpoint.config = config.to_dict() if hasattr(config, "to_dict") else None
        return checkpoint
    if isinstance(source, Mapping):
        return _from_tensors(source, "state dict")
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_file(path)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) and path.suffix.lower() not in (".safetensors", *PICKLES):
        return _from_hub(str(source), revision)
    raise CheckpointError(f"there is no checkpoint at {source}")


def _from_tensors(state: Mapping, source: str) -> Checkpoint:
    wrong = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong and len(state) and len(wrong) < len(state) or not state:
        wrong_kind = f"values that are not tensors: {', '.join(wrong[:10])}" if state else "no tensors at all"
        raise CheckpointError(f"{source} has {wrong_kind}")
    if wrong:  # {"state_dict": {...}, "epoch": ...}, as trainers write it
        inner = [v for v in state.values() if isinstance(v, Mapping) and any(isinstance(t, Tensor) for t in v.values())]
        if len(inner) != 1:
            raise CheckpointError(f"{source} is no state dict: its keys are {', '.join(wrong[:10])}")
        return _from_tensors(inner[0], source)
    if any(value.is_meta for value in state.values()):
        raise CheckpointError(f"{source} is on the meta device: it has shapes but no weights")
    tensors, tied, first = {}, {}, {}
    for name, value in state.items():
        value = value.detach()
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and first.setdefault(key, name) != name:
            tied[name] = first[key]
        tensors[name] = Lazy(tuple(value.shape), value.dtype, lambda value=value: value.cpu())
    return Checkpoint(source, tensors, tied)


def _from_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        file = SafetensorsFile(path)
        tensors = {name: Lazy(t.shape, t.dtype, partial(file.load, name), partial(file.release, name))
                   for name, t in file.tensors.items()}  # fmt: skip
        return Checkpoint(str(path), tensors)
    if path.suffix not in PICKLES:
        raise CheckpointError(f"{path} is neither .safetensors nor {', '.join(PICKLES)}")
    return _from_tensors(_load_pickle(path), str(path))


def _load_pickle(path: Path) -> Mapping:
    for mapped in (True, False):  # files written before torch 1.6 cannot be mapped
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} holds Python objects, not only tensors, and is not opened: they could run any code.  "
                f"Save its state_dict() instead, best as .safetensors"
            ) from error
        except Exception as error:  # of a file that is no archive of tensors, torch raises whatever it stumbles over
            if mapped and "mmap can only be used" in str(error):
                continue
            raise CheckpointError(f"{path} cannot be read as a PyTorch file: {error!r}") from error
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict")
        return state
    raise AssertionError("unreachable")


def _from_folder(folder: Path) -> Checkpoint:
    if (folder / "dts_config.json").exists():
        raise CheckpointError(f"{folder} is an adapter, not a model; a model is needed here (see `dts apply`)")
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        found = sorted(folder.glob("*.safetensors"))
        if len(found) != 1:
            there = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
            raise CheckpointError(f"{folder} has no {' or '.join(WEIGHT_FILES)}; there is: {there}")
    if found[0].name.endswith(".index.json"):
        checkpoint = _from_index(found[0])
    else:
        checkpoint = _from_file(found[0])
    checkpoint.source, checkpoint.folder = str(folder), folder
    if (folder / "config.json").is_file():
        checkpoint.config = _json_object(folder / "config.json")
    return checkpoint


def _json_object(path: Path) -> dict:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds a {type(content).__name__}, not an object")
    return content


def _from_index(index: Path) -> Checkpoint:
    where = _json_object(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise CheckpointError(f"{index} is damaged: it has no weight_map of file names")
    absent = sorted({shard for shard in where.values() if not (index.parent / shard).is_file()})
    if absent:
        raise CheckpointError(f"{index} names shards that are not there: {', '.join(absent)}")
    shards = {shard: _from_file(index.parent / shard) for shard in sorted(set(where.values()))}
    absent = sorted(name for name, shard in where.items() if name not in shards[shard].tensors)
    if absent:
        raise CheckpointError(f"{index} names tensors that its shards do not have: {', '.join(absent)}")
    tied = {name: first for shard in shards.values() for name, first in shard.tied.items()}
    return Checkpoint(str(index), {name: shards[shard].tensors[name] for name, shard in where.items()}, tied)


def _from_hub(name: str, revision: str | None) -> Checkpoint:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"there is no file or folder {name}; reading it from a hub needs `pip install huggingface_hub`"
        ) from error
    text = ["*.json", "*.txt", "*.model", "*.jinja"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", *text]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=["pytorch_model*.bin", *text]))
    except Exception as error:  # offline, no such id, no access: the hub's own message says which
        raise CheckpointError(f"there is no file or folder {name}, and the hub did not give it: {error}") from error
    checkpoint = _from_folder(folder)
    checkpoint.source, checkpoint.revision = name, folder.name
    return checkpoint
