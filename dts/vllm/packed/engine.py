"""Where packed tasks reach into vLLM: the one module that uses what vLLM does not promise, of one version.

Taken from vLLM are its requests' LoRAs (which task each token is of, which tasks are wanted) and its layers' methods
(``quant_method.apply`` and ``embedding``, before a process's part of a sum is added to the others', so that tensor
parallel costs no collective of its own).  Its own LoRA layers and their memory are never made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import vllm
from torch import Tensor, nn
from vllm.config import CompilationMode
from vllm.model_executor.layers.layernorm import LayerNorm, RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from dts.adapter.apply import check_base
from dts.checkpoint import Checkpoint, open_checkpoint
from dts.vllm import versions
from dts.vllm.configs import refuse_differences
from dts.vllm.loader import source
from dts.vllm.packed.batch import Batch, Rows
from dts.vllm.packed.layers import LinearDelta, NormDelta, Place
from dts.vllm.packed.tasks import Tasks
from dts.vllm.places import load_place, place_of

log = logging.getLogger("vllm.dts")  # which vLLM prints
LINEAR = (QKVParallelLinear, MergedColumnParallelLinear, ColumnParallelLinear, RowParallelLinear, ReplicatedLinear)


def install() -> None:
    """Puts `Manager` where vLLM makes its own manager of LoRAs.  Raises ValueError for another version of vLLM."""
    if not versions.known():
        raise ValueError(
            f"DTS_VLLM_MODE=packed reaches into vLLM where nothing is promised, and was made for version "
            f"{versions.NAMES}; this is {vllm.__version__}.  DTS_VLLM_MODE=lora and --load-format dts use what "
            "vLLM promises"
        )
    from vllm.v1.worker import lora_model_runner_mixin

    lora_model_runner_mixin.LRUCacheWorkerLoRAManager = Manager


class Manager:
    """What vLLM's model runner asks of its manager of LoRAs, with packed adapters in their place."""

    is_enabled = True

    def __init__(self, vllm_config: Any, device: torch.device, embedding_modules: Any = None):
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        wrong = {
            f"the device is {device.type}: it was made for vLLM on CPUs": device.type != "cpu",
            "vLLM compiles the model: start it with --enforce-eager": (
                vllm_config.compilation_config.mode != CompilationMode.NONE
            ),
            f"the base is quantised ({model.quantization})": model.quantization is not None,
            f"the model does not generate but {model.runner_type}": model.runner_type != "generate",
            "the model has inputs beside text": model.is_multimodal_model,
            "the model is in stages (--pipeline-parallel-size)": parallel.pipeline_parallel_size > 1,
            "another model drafts tokens (--speculative-config)": vllm_config.speculative_config is not None,
            "its output layer has another dtype (head_dtype)": model.head_dtype not in (None, model.dtype),
        }
        if any(wrong.values()):
            raise ValueError(
                f"DTS_VLLM_MODE=packed cannot run here: {'; '.join(w for w, is_so in wrong.items() if is_so)}"
            )
        self.config, self.room = model, vllm_config.lora_config.max_cpu_loras
        self.batch = Batch()
        self.tasks: Tasks
        self._base: Checkpoint | None = None
        self._loaded: dict[str, str] = {}  # path -> the place that was loaded from it

    def create_lora_manager(self, model: nn.Module, vllm_config: Any = None) -> nn.Module:
        """The model, whose layers ask the tasks from now on."""
        self.tasks = Tasks(places(model, self.batch), renamer(model), self.room)
        return model

    # -- tasks

    @property
    def base(self) -> Checkpoint:
        if self._base is None:
            self._base = open_checkpoint(source(self.config))
        return self._base

    def add_adapter(self, request: Any) -> bool:
        return self._add(request, {request.lora_int_id})

    def _add(self, request: Any, keep: set[int]) -> bool:
        """Raises AdapterError, Mismatch or ValueError for an adapter that cannot be used, with nothing changed."""
        number = request.lora_int_id
        if number in self.tasks.numbers and not request.load_inplace:
            self.tasks.touch(number)
            return False
        adapter, before = load_place(request.lora_path), self.tasks.nbytes
        assert adapter.folder is not None
        place = place_of(adapter.folder, adapter.digest)
        if self._loaded.setdefault(request.lora_path, place) != place:
            raise ValueError(
                f"another adapter was loaded from {request.lora_path} before, and vLLM's cache keeps what it left by "
                "that path: load it from another one, or let vLLM look the name up in DTS_VLLM_ADAPTERS"
            )
        check_base(adapter, self.base)
        refuse_differences(request.lora_name, adapter.model_config, self.base.config, self.config.hf_config)
        self.tasks.load(number, adapter, keep)
        held, packed = self.tasks.nbytes - before, adapter.nbytes
        log.info("the task %s runs packed: %d bytes in memory, %d on disk", request.lora_name, held, packed)
        return True

    def set_active_adapters(self, requests: set[Any], mapping: Any) -> None:
        """Before each forward pass: the tasks of its tokens."""
        wanted = {request.lora_int_id for request in requests}
        for number in wanted & self.tasks.numbers:
            self.tasks.touch(number)
        for request in requests:
            if request.lora_int_id not in self.tasks.numbers:
                self._add(request, wanted)
        if mapping is not None:
            slot = self.tasks.slot
            self.batch.set(list(map(slot, mapping.index_mapping)), list(map(slot, mapping.prompt_mapping)))

    def remove_adapter(self, number: int) -> bool:
        return self.tasks.remove(number)

    def remove_all_adapters(self) -> None:
        self.tasks.clear()

    def pin_adapter(self, number: int) -> bool:
        self.tasks.pin(number)
        return True

    def list_adapters(self) -> set[int]:
        return self.tasks.numbers

    # -- vLLM's warming up, with tasks of nothing

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield

    def add_dummy_lora(self, request: Any, rank: int) -> bool:
        self.tasks.reserve(request.lora_int_id)
        return True

    def get_dummy_lora_warmup_rank(self, default: int) -> int:
        return default

    def supports_tower_connector_lora(self) -> bool:
        return False


def renamer(model: nn.Module) -> Callable[[str], str]:
    """Names on disk as vLLM names its modules, which it may have in other places."""
    mapper: Any = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return lambda name: name
    renames = mapper.get_rename_mapper()
    return lambda name: renames.map_name(name) or name


def places(model: nn.Module, batch: Batch) -> dict[str, Place]:
    """Names of tensors on disk -> where this process has them; each layer asks for its deltas from now on.

    Layers of other kinds have no places: an adapter that changes one is refused by its name.
    """
    fused = getattr(model, "packed_modules_mapping", {})
    found: dict[str, Place] = {}
    linear: dict[int, LinearDelta] = {}  # by the weight, which layers may share
    for name, module in model.named_modules(remove_duplicate=False):
        layer: Any = module
        if type(module) in LINEAR:
            linear[id(layer.weight)] = delta = LinearDelta(*_local(layer))
            found |= _of_linear(layer, name, fused, delta)
            _follow(layer, delta, batch.rows_of)
        elif type(module) in (VocabParallelEmbedding, ParallelLMHead):
            delta = linear.setdefault(id(layer.weight), LinearDelta(*_local(layer)))
            own = layer.shard_indices
            rows = range(own.org_vocab_start_index, own.org_vocab_end_index)
            shape = layer.org_vocab_size, layer.embedding_dim
            found[f"{name}.weight"] = Place(delta, "weight", shape, 0, rows, range(shape[1]))
            _follow(layer, delta, batch.logits if isinstance(module, ParallelLMHead) else batch.rows_of)
        elif type(module) in (RMSNorm, LayerNorm, nn.LayerNorm):
            norm = NormDelta()
            for parameter, tensor in module.named_parameters(recurse=False):
                found[f"{name}.{parameter}"] = Place(norm, parameter, tuple(tensor.shape))
            layer.forward = (_rms_norm if type(module) is RMSNorm else _layer_norm)(layer, norm, batch)
    return found


def _local(layer: Any) -> tuple[int, int]:
    """(rows, columns) of a layer's weight in this process."""
    if isinstance(layer, VocabParallelEmbedding):
        return layer.num_embeddings_per_partition, layer.embedding_dim
    if isinstance(layer, ReplicatedLinear):
        return layer.output_size, layer.input_size
    return layer.output_size_per_partition, layer.input_size_per_partition


def _of_linear(layer: Any, name: str, fused: dict[str, list[str]], delta: LinearDelta) -> dict[str, Place]:
    """The matrices and biases on disk that a linear layer is of."""
    parent, _, own = name.rpartition(".")
    parts, columns = _parts(layer), range(delta.columns)
    if isinstance(layer, RowParallelLinear):
        columns = range(layer.tp_rank * delta.columns, (layer.tp_rank + 1) * delta.columns)
    names = fused.get(own, [own]) if len(parts) > 1 else [own]
    if len(names) != len(parts):  # one tensor on disk too
        if layer.tp_size > 1 or len(names) > 1:
            return {}
        parts = [(layer.output_size, range(layer.output_size))]
    found, at = dict[str, Place](), 0
    for part, (size, rows) in zip(names, parts):
        whole = f"{parent}.{part}" if parent else part
        found[f"{whole}.weight"] = Place(delta, "weight", (size, layer.input_size), at, rows, columns)
        if getattr(layer, "bias", None) is not None and not layer.skip_bias_add:
            found[f"{whole}.bias"] = Place(delta, "bias", (size,), at, rows)
        at += len(rows)
    return found


def _parts(layer: Any) -> list[tuple[int, range]]:
    """(rows on disk, which of them this process has) of every matrix that a linear layer joins."""
    if isinstance(layer, QKVParallelLinear):
        kv = layer.tp_rank // layer.num_kv_head_replicas
        sizes = [
            (layer.total_num_heads, layer.num_heads, layer.head_size, layer.tp_rank),
            (layer.total_num_kv_heads, layer.num_kv_heads, layer.head_size, kv),
            (layer.total_num_kv_heads, layer.num_kv_heads, layer.v_head_size, kv),
        ]
        return [(all_ * size, range(at * own * size, (at + 1) * own * size)) for all_, own, size, at in sizes]
    if isinstance(layer, RowParallelLinear | ReplicatedLinear):
        return [(layer.output_size, range(layer.output_size))]
    found = []
    for size in layer.output_sizes if isinstance(layer, MergedColumnParallelLinear) else [layer.output_size]:
        own = size // layer.tp_size
        found.append((size, range(layer.tp_rank * own, (layer.tp_rank + 1) * own)))
    return found


def _follow(layer: Any, delta: LinearDelta, of: Callable[[Tensor], Rows]) -> None:
    """The layer's own products and look-ups, and then what the tasks change of them.  of: the rows of an input."""
    method = layer.quant_method
    if "apply" in vars(method):
        raise ValueError(f"two layers of vLLM's model share {type(method).__name__}, which cannot be followed")
    apply: Callable[..., Tensor] = method.apply
    embedding: Callable[..., Tensor] | None = getattr(method, "embedding", None)

    def applied(layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = apply(layer, x, bias)
        if not delta.slots or not delta.slots & (rows := of(x)).active:
            return y
        flat = delta.apply(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), rows, bias is not None)
        return flat.view(y.shape)

    def embedded(layer: Any, ids: Tensor) -> Tensor:
        assert embedding is not None  # who looks rows up has it
        y = embedding(layer, ids)
        if not delta.slots or not delta.slots & (rows := of(ids)).active:
            return y
        return delta.look_up(ids, y, rows)

    method.apply = applied
    if embedding is not None:
        method.embedding = embedded


def _rms_norm(layer: Any, delta: NormDelta, batch: Batch) -> Callable[..., Any]:
    """`RMSNorm.forward` with the weight of each row's task, in the order of vLLM's own operation."""
    base = layer.forward

    def forward(x: Tensor, residual: Tensor | None = None) -> Any:
        if not delta.slots or not delta.slots & (rows := batch.rows_of(x)).active:
            return base(x, residual)
        wide = x.float() if residual is None else x.float() + residual.float()
        summed = wide.to(x.dtype)
        size = layer.variance_size_override
        variance = wide[..., :size].square().mean(-1, keepdim=True)
        weight = beside(delta.values("weight", layer.weight.data, rows), x)
        y = ((wide * torch.rsqrt(variance + layer.variance_epsilon)).to(weight.dtype) * weight).to(x.dtype)
        return y if residual is None else (y, summed)

    return forward


def _layer_norm(layer: Any, delta: NormDelta, batch: Batch) -> Callable[..., Any]:
    """`LayerNorm.forward` with the weight and bias of each row's task."""
    base = layer.forward

    def forward(x: Tensor) -> Tensor:
        if not delta.slots or not delta.slots & (rows := batch.rows_of(x)).active:
            return base(x)
        weight = beside(delta.values("weight", layer.weight.data, rows), x)
        y = nn.functional.layer_norm(x.to(weight.dtype), layer.normalized_shape, eps=layer.eps) * weight
        if layer.bias is not None:
            y = y + beside(delta.values("bias", layer.bias.data, rows), x)
        return y.to(x.dtype)

    return forward


def beside(values: Tensor, x: Tensor) -> Tensor:
    """[R, n] in a shape to multiply x [T, ..., n] by, R 1 or T."""
    return values.view(values.shape[0], *[1] * (x.dim() - 2), values.shape[-1])
