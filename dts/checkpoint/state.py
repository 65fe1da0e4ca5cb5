"""State dicts and modules as checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from dts.checkpoint.checkpoint import Checkpoint, Lazy
from dts.checkpoint.errors import CheckpointError, NotRead, Quantised, some
from dts.checkpoint.kinds import WEIGHTS, bad_name
from dts.checkpoint.quantised import class_method, way
from dts.sites import is_quantised, raw
from dts.warn import warn

# starts of a trainer's keys beside the model's
NO_MODELS: tuple[str, ...] = ("optim", "sched", "scaler", "rng", "random", "loss", "callbacks", "metrics", "ds_config")
NO_MODELS += ("param_shapes", "hyper_parameters", "args", "config")


def from_module(module: torch.nn.Module) -> Checkpoint:
    """Raises CheckpointError for a PeftModel: its own state dict has other names for each kind of adapter."""
    name = type(module).__name__
    bases = {cls.__module__.partition(".")[0] + "." + cls.__name__ for cls in type(module).__mro__}
    if bases & {"peft.PeftModel", "peft.PeftMixedModel"} or getattr(module, "_hf_peft_config_loaded", False):
        raise CheckpointError(
            f"{name} is a PEFT model (LoRA or another adapter), not a full fine-tune: call "
            "merge_and_unload() on it and give what that returns"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise CheckpointError(f"{name} is a TorchScript program, not a model: give its state_dict()")
    lazy = any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters())  # refused below
    codes = [] if lazy else [where for where, inner in module.named_modules() if is_quantised(inner)]
    if codes:  # and of some libraries making a state dict changes the codes
        method = class_method(raw(module.get_submodule(codes[0]), "weight")) or "its layers' library"
        raise Quantised(f"{name} is quantised by {method} ({some(codes, 3)}): {way(method)}")
    checkpoint = from_tensors(module.state_dict(), name)
    checkpoint.config = config_of(module)
    return checkpoint


def config_of(module: torch.nn.Module) -> dict | None:
    """What its ``config.json`` would hold; None of a module that has none."""
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    return None if to_dict is None else to_dict()


def from_tensors(state: Mapping, source: str, select: str | None = None) -> Checkpoint:
    """select: which of several states in it, as in {"model": {...}, "ema": {...}}; "outer.inner" of one further in."""
    states = _states(state)
    if select is not None:
        if select not in states:
            there = f"it has {some(states)}" if states else "it has none: leave out #" + select
            raise CheckpointError(f"{source} has no state {select!r}; {there}")
        return from_tensors(states[select], f"{source}#{select}")
    if not state:
        raise CheckpointError(f"{source} has no tensors at all")
    if not any(isinstance(value, Tensor) for value in state.values()):
        return _inner(state, states, source)
    check_plain(state, source)
    tensors: dict[str, Lazy] = {}
    tied: dict[str, str] = {}
    first: dict[tuple, str] = {}
    for name, value in state.items():
        value = value.detach()
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and first.setdefault(key, name) != name:
            tied[name] = first[key]
        tensors[name] = Lazy(tuple(value.shape), value.dtype, value.cpu)
    return Checkpoint(source, tensors, tied)


def _is_state(value) -> bool:
    return isinstance(value, Mapping) and any(isinstance(tensor, Tensor) for tensor in value.values())


def _states(state: Mapping, prefix: str = "", depth: int = 3) -> dict[str, Mapping]:
    """The dicts of tensors in a mapping, by their keys; those of dicts further in by all keys on the way."""
    found: dict[str, Mapping] = {}
    for key, value in state.items():
        if not isinstance(key, str):  # an optimizer's parameters are numbered
            continue
        if _is_state(value):
            more = {f"{prefix}{key}": value}
        else:
            more = _states(value, f"{prefix}{key}.", depth - 1) if isinstance(value, Mapping) and depth > 1 else {}
        if twice := sorted(found.keys() & more.keys()):
            raise CheckpointError(f"two states would be called {some(twice)}: give the dict of the one you mean")
        found |= more
    return found


def _inner(state: Mapping, states: dict, source: str) -> Checkpoint:
    """The one model in what a trainer wrote: {"state_dict": {...}, "epoch": ...}."""
    if set(state) >= {"state", "param_groups"}:
        raise CheckpointError(f"{source} is an optimizer's state: {WEIGHTS}")
    if "param_shapes" in state and "module" in state:
        raise CheckpointError(
            f"{source} is a DeepSpeed state, which may hold part of each tensor: run the "
            "zero_to_fp32.py that DeepSpeed wrote beside it, and give what that writes"
        )
    models = {key: value for key, value in states.items() if not key.lower().startswith(NO_MODELS)}
    outermost = [key for key in models if "." not in key]
    if len(outermost) == 1:
        checkpoint = from_tensors(models[outermost[0]], source)
        if others := [key for key in models if key != outermost[0]]:
            checkpoint.notes.append(f"{source}: its state {outermost[0]} was read, and {some(others)} was not")
            warn(checkpoint.notes[-1], NotRead)
        return checkpoint
    ways = [f"{source}#{key}" for key in models][:2]
    way = (
        f"{' or '.join(ways)} of a file (or, for the fine-tune, --state {next(iter(models), '')}), or that dict itself"
    )
    if outermost:
        raise CheckpointError(f"{source} has several states: {some(models)}.  Give the one you mean: {way}")
    if models:
        found = some(": ".join(key.rsplit(".", 1)) for key in models)
        raise CheckpointError(f"{source} holds dicts of states ({found}): give one of these, {way}")
    keys = some(repr(key) if not isinstance(key, str) else key for key in state)
    if any(str(key).lower().startswith(("optim", "sched", "exp_avg", "base_lrs", "last_epoch")) for key in state):
        raise CheckpointError(f"{source} is an optimizer's or trainer's state (its keys are {keys}): {WEIGHTS}")
    raise CheckpointError(f"{source} is no state dict: its keys are {keys}, and none of their values is a tensor")


def check_plain(state: Mapping, source: str) -> None:
    """Raises CheckpointError of all names and values that are no plain dense tensors, each cause on one line."""
    causes: dict[str, list] = {}
    for name, value in state.items():
        if bad_name(name):
            causes.setdefault("names that are no text, empty, or have control characters", []).append(repr(name))
        why = _why_not(value)
        if why:
            causes.setdefault(why, []).append(name)
    lines = [f"{source} has {why}: {some(names)}" for why, names in causes.items()]
    if lines:
        raise CheckpointError("\n  ".join(lines))


def _why_not(value) -> str | None:
    if not isinstance(value, Tensor):
        return "values that are not tensors"
    method = class_method(value)
    if method:
        return f"tensors quantised by {method} ({way(method)})"
    if type(value).__name__ == "DTensor" or type(value).__name__ == "ShardedTensor":
        return "tensors sharded over processes (gather them first: value.full_tensor())"
    if isinstance(value, (UninitializedBuffer, UninitializedParameter)):
        return "parameters of lazy modules that were never run (call the model once)"
    if value.layout is not torch.strided:
        return f"{str(value.layout).removeprefix('torch.')} tensors (give them dense: value.to_dense())"
    if value.is_nested:
        return "nested tensors"
    if value.is_meta:
        return "tensors on the meta device, with shapes but no weights"
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"tensors of the class {type(value).__module__}.{type(value).__qualname__}, not plain ones"
    return None
