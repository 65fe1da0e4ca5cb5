"""What a pass takes besides weights: it is run on tensors without memory, and those that are alive are counted.

No kernel runs and nothing is read.  A model that asks for a number of its inputs to decide what to do next cannot be
followed; that it was padded is taken for granted, which needs a mask.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEEPEST = 8  # levels of attributes that a cache is looked for in
CACHES = ("cache", "past_key_values", "cache_params")  # names of it, the newest first
QUESTIONS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::item")


class NotFollowed(RuntimeError):
    """A pass whose memory is not known, and why."""


@dataclass(frozen=True)
class PassSize:
    """activations: bytes alive at the worst moment, cache not counted;  cache: bytes of it at the end."""

    activations: int
    cache: int


class _Alive(TorchDispatchMode):
    """Bytes of the storages that operations make, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in QUESTIONS:
            if args[0].dtype == torch.bool:
                return False
            raise NotFollowed("it asks for a number of its inputs to decide what to compute")
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


class _InBlocks(TorchFunctionMode):
    """Attention in blocks, as the kernels of every device compute it: no [length, length] of scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            query, value = args[0], args[2]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def pass_size(model: nn.Module, batch: int, length: int) -> PassSize:
    """Of rows of ``length`` tokens; a model that generates: the prompt and answer together, the last token's logits.

    model: on the meta device.  Raises NotFollowed.
    """
    inputs = _inputs(model, batch, length)
    alive = _Alive()
    try:
        with warnings.catch_warnings(), torch.inference_mode(), alive, _InBlocks():
            warnings.simplefilter("ignore")  # what a library says of names that it will change
            if not _generates(model):
                model(**inputs)
                return PassSize(alive.most, 0)
            first, last = _split(inputs, length)
            takes = inspect.signature(model.forward).parameters
            kept = next((name for name in CACHES if name in takes), None)
            if kept is None:
                raise NotFollowed("it generates without a cache that is known")
            how = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})
            cache = _cache_in(model(**first, **how))
            cache = _cache_in(model(**last, **{kept: cache}, **how))
            size = _bytes_in(cache)
        if not size:
            raise NotFollowed(f"its cache, a {type(cache).__name__}, holds no tensors that are known")
        return PassSize(alive.most - size, size)
    except NotFollowed:
        raise
    except Exception as error:
        raise NotFollowed(f"a pass without memory ended with {type(error).__name__}: {str(error)[:200]}") from error


def _generates(model: nn.Module) -> bool:
    return bool(getattr(model, "can_generate", lambda: False)())


def _inputs(model: nn.Module, batch: int, length: int) -> dict[str, Tensor]:
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise NotFollowed("a model of an encoder and a decoder has two lengths and two caches")
    kind = getattr(model, "main_input_name", None)
    if kind == "input_ids":
        ids = torch.ones(batch, length, dtype=torch.long, device="meta")
        return {"input_ids": ids, "attention_mask": ids}
    if kind == "pixel_values":
        size = getattr(config, "image_size", None)
        sides = (size, size) if isinstance(size, int) else size
        if isinstance(sides, (list, tuple)) and len(sides) == 2:
            shape = (batch, getattr(config, "num_channels", 3), *sides)
            dtype = next(p.dtype for p in model.parameters())
            return {"pixel_values": torch.empty(shape, dtype=dtype, device="meta")}
    raise NotFollowed(f"what its inputs ({kind}) are like is not known")


def _split(inputs: Mapping[str, Tensor], length: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The prompt, and the last token of the answer with the mask of all."""
    if length < 2:
        raise NotFollowed("a text that is generated has at least 2 tokens")
    prompt = {name: tensor[:, :-1] for name, tensor in inputs.items()}
    return prompt, {"input_ids": inputs["input_ids"][:, -1:], "attention_mask": inputs["attention_mask"]}


def _cache_in(out: Any) -> Any:
    for name in CACHES:
        if getattr(out, name, None) is not None:
            return getattr(out, name)
    raise NotFollowed("it generates, and gives no cache that is known")


def _bytes_in(value: Any, deep: int = 0, seen: set[int] | None = None) -> int:
    """Bytes of all tensors in something, each storage once."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage._cdata in seen:
            return 0
        seen.add(storage._cdata)
        return storage.nbytes()
    if deep > DEEPEST or isinstance(value, (str, bytes, type(None), bool, int, float, type)):
        return 0
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, (list, tuple)):
        inner = list(value)
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        inner = list(vars(value).values())
    else:
        inner = []
    return sum(_bytes_in(one, deep + 1, seen) for one in inner)
