"""One file of weights as a checkpoint."""

import pickle
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dts.checkpoint.checkpoint import Checkpoint, Lazy
from dts.checkpoint.errors import AGAIN, CheckpointError, some
from dts.checkpoint.foreign import foreign, is_safetensors
from dts.checkpoint.safetensors_file import Damaged, SafetensorsFile
from dts.checkpoint.state import check_plain, from_tensors
from dts.files import expanded

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(.*)\.(safetensors|bin)")


def from_file(path: Path, select: str | None = None, shard: bool = False) -> Checkpoint:
    """select: which of several states in a pickle;  shard: the file may be one of several."""
    alone = SHARD.fullmatch(path.name)
    if alone and int(alone[3]) > 1 and not shard:
        raise CheckpointError(f"{path} is one of {int(alone[3])} shards of a model: give the folder it lies in")
    what = foreign(path)
    if what:
        raise CheckpointError(what)
    if path.suffix != ".safetensors" and path.suffix not in PICKLES:
        raise CheckpointError(
            f"{path} is neither .safetensors nor {', '.join(PICKLES)}: give a model's folder, or its file of weights"
        )
    if path.suffix == ".safetensors" and _is_pickle(path) and not is_safetensors(path):
        raise CheckpointError(f"{path} is a PyTorch file with the wrong ending: name it {path.stem}.bin")
    if path.suffix == ".safetensors" or is_safetensors(path):
        if select is not None:
            raise CheckpointError(f"{path} has one state and no {select!r}: leave out #{select} (or --state)")
        try:
            file = SafetensorsFile(path)
        except Damaged as error:
            raise type(error)(f"{error}.  {error.advice}") from None
        tensors = {
            name: Lazy(t.shape, t.dtype, partial(file.load, name), partial(file.release, name))
            for name, t in file.tensors.items()
        }
        if not tensors:
            raise CheckpointError(f"{path} has no tensors at all")
        return Checkpoint(str(path), tensors)
    return from_tensors(load_pickle(path), str(path), select)


def split_state(source: str) -> tuple[str, str | None]:
    """``file#state`` -> its two parts; anything else, a file with # in its name among them, stays as it is."""
    file, at, state = source.rpartition("#")
    if at and state and expanded(file).is_file() and not expanded(source).exists():
        return file, state
    return source, None


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(2)
    return start in (b"PK", b"\x80\x02")


def load_pickle(path: Path) -> Mapping:
    """The mapping in a PyTorch file, its tensors mapped where they can be.

    The one place where pickles are read, with ``weights_only=True``.  Raises CheckpointError, in words of its own:
    those of torch tell how to run whatever code a file holds.
    """
    for mapped in (True, False):  # files written before torch 1.6 cannot be mapped
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # of a file that is no archive of tensors, torch raises whatever it stumbles over
            if mapped and "mmap can only be used" in str(error):
                continue
            if isinstance(error, OSError):
                raise
            raise CheckpointError(_refused(path, error)) from error
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict")
        return state
    raise AssertionError("unreachable")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A PyTorch file that holds nothing but plain dense tensors by name; raises CheckpointError."""
    if what := foreign(path):
        raise CheckpointError(what)
    found = load_pickle(path)
    if not found or not all(isinstance(key, str) for key in found):
        raise CheckpointError(f"{path} holds no tensors by name")
    if strange := [key for key, value in found.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path} holds more than tensors: {some(strange)}")
    check_plain(found, str(path))
    return {key: value.data if isinstance(value, nn.Parameter) else value for key, value in found.items()}


def _refused(path: Path, error: Exception) -> str:
    """Why a pickle is not read, and what to do."""
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
        return (
            f"{path} holds Python objects, not only tensors, and is not opened: they could run any code.  "
            f"Save its state_dict() instead, best as .safetensors"
        )
    if isinstance(error, pickle.UnpicklingError) and _is_pickle(path):
        return f"{path} holds more than tensors by name, or is damaged, and is not opened.  {AGAIN}"
    why = f": {type(error).__name__} {(str(error).splitlines() or [''])[0]}".rstrip()
    advises = isinstance(error, pickle.UnpicklingError) or "weights_only" in why
    return f"{path} cannot be read as a PyTorch file{'' if advises else why}.  {AGAIN}"
