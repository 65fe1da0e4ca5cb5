"""`torch_program`: a `DTSModel` of many tasks as one `torch.export` program whose routing is an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dts.checkpoint.errors import first, first_line
from dts.exports.program.manifest import INPUTS, Manifest
from dts.exports.program.routed import Routed, named
from dts.exports.program.swap import broadcasts, plain_banks
from dts.nn import BASE, DTSModel
from dts.nn.layers import Layer, Owner
from dts.nn.selection import Selection
from dts.nn.views import plain
from dts_kernels.dispatch import exact_products

ROUTINGS = ("rows", "call")
TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")  # of a node: where code stood
NOT_SAME = (
    "the model with its tasks as inputs does not answer as it does itself ({}), so no program was made: with "
    "routing='call' (--routing call) it may"
)


class NoProgram(RuntimeError):
    """A model that torch.export cannot trace, or a program that a format cannot hold."""

    cli_code = 2


@dataclass(frozen=True)
class Program:
    """exported: for `torch.export.save`, AOTInductor, torch.onnx;  manifest: goes with it
    factors: names of its buffers that are the tasks', with their bytes;  base: bytes of all else that it holds
    inputs: the example, with its routing;  options: of the model's forward, the same in every call
    """

    exported: torch.export.ExportedProgram
    manifest: Manifest
    factors: dict[str, int]
    base: int
    inputs: dict[str, Tensor]
    options: dict[str, Any]


@torch.no_grad()
def torch_program(
    model: DTSModel,
    inputs: Mapping[str, Tensor],
    routing: str = "rows",
    places: int = 1,
    dynamic: Mapping[str, Sequence[int]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Program:
    """One program of the base and all loaded tasks: packed factors stay packed, another task is another input.

    Its operations are PyTorch's own, so it runs where this package is not: in C++ by AOTInductor, as ONNX, in OpenVINO.

    inputs: an example, the model's keyword arguments [rows, ...] by name; the number of rows may be another later
    routing: "rows", a task or mixture for each row; or "call", one for all rows: for layers that cannot tell rows
    apart, and cheaper with sketches
    places: how many tasks a mixture may have
    dynamic: input -> further axes whose size may differ; by default axis 1 of integers (tokens)
    options: further keyword arguments of the model's forward, as constants; by default no key-value cache
    Raises ValueError for a model without tasks, inputs without rows in common, and, with the layers and the reason,
    where rows cannot have tasks of their own; NoProgram where torch.export cannot trace the model.
    """
    _check(model, inputs, routing, places)
    if options is None:
        options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    rows = {tensor.shape[0] for tensor in inputs.values()}.pop()
    if rows == 1:  # torch.export would take a size of 1 for a constant
        inputs, rows = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}, 2
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with model._state.alone():
            found = _where(model, inputs, options, rows) if routing == "rows" else {}
            routed = Routed(model, list(inputs), found, options)
            manifest = _manifest(model, list(inputs), routing, places)
            tasks = in_turn(manifest, rows)
            given = manifest.routing(tasks, rows) | dict(inputs)
            with exact_products():
                wanted = named(model(**inputs, **options, tasks=tasks))
            with plain_banks(model._layers, routed.factors, routed.shared, routing == "rows"):
                _same(_run(routed, given), wanted)
                exported = _exported(routed, given, _shapes(given, routing, dynamic))
    finally:
        for module in training:
            module.training = True
    for node in exported.graph.nodes:  # half of the file, and paths of the machine that made it
        for key in TRACES:
            node.meta.pop(key, None)
    read = {node.name for node in exported.graph.nodes if node.op == "placeholder" and node.users}
    buffers = exported.graph_signature.inputs_to_buffers
    used = {name for node, name in buffers.items() if node in read and name.startswith("factors.")}
    shared = {id(t) for t in routed.shared.buffers()}
    factors = {name: t.nbytes for name, t in routed.named_buffers() if name in used and id(t) not in shared}
    own = [*routed.model.parameters(), *routed.model.buffers()]
    manifest = replace(manifest, outputs=list(wanted))
    return Program(exported, manifest, factors, sum(t.nbytes for t in own), given, dict(options))


def _check(model: DTSModel, inputs: Mapping[str, Tensor], routing: str, places: int) -> None:
    wrong = []
    if type(model) is not DTSModel:
        raise TypeError(f"a program is made of a DTSModel, not of {type(model).__name__}")
    if not model.tasks:
        wrong.append("the model has no tasks: load_task() those that the program is to have")
    exact = [n for n, layer in model._layers.items() if any(p.exact for p in layer.dts.parameters.values())]
    if exact:
        wrong.append(
            f"some task keeps every bit (method exact) of {len(exact)} layers, {', '.join(exact[:3])} among them: a "
            "program has tasks as numbers of packed factors; leave it out, or compress it with --method residual"
        )
    if routing not in ROUTINGS:
        wrong.append(f"routing is 'rows' or 'call', not {routing!r}")
    if not isinstance(places, int) or places < 1:
        wrong.append(f"places is 1 or more, not {places!r}")
    if not inputs or not all(isinstance(t, Tensor) and t.dim() for t in inputs.values()):
        wrong.append("inputs are the model's keyword arguments, tensors with a row for each row of the batch")
    elif len({tensor.shape[0] for tensor in inputs.values()}) > 1:
        wrong.append(f"inputs have different rows: { {name: list(t.shape) for name, t in inputs.items()} }")
    if taken := sorted(set(inputs) & set(INPUTS)):
        wrong.append(f"{taken} are inputs of the program itself")
    if wrong:
        raise ValueError("; ".join(wrong))


def _where(model: DTSModel, inputs: Mapping[str, Tensor], options: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Where the rows are in each layer's input, as fields of `Current`."""
    base, layers, called = plain(model.model), model._layers, dict(inputs) | dict(options)
    where = model._known_calls.where(base, layers, model._state, base.__call__, "__call__", (), called, rows)
    reasons = {name: why for name, why in where.unroutable.items() if layers[name].dts.slots}
    for name, layer in layers.items():
        if isinstance(layer, Owner) and layer.dts.slots and not broadcasts(layer):
            reasons.setdefault(name, "it runs once a task")
    if where.coupled:
        reasons["the model"] = "its outputs mix the rows of the batch"
    if reasons:
        listed = first((f"{name}: {why}" for name, why in reasons.items()), 5, "; ")
        raise ValueError(
            f"rows of several tasks cannot go through this model at once ({listed}): export with routing='call' "
            "(--routing call), one task or mixture for all rows"
        )
    return where.fields


def _shapes(
    given: Mapping[str, Tensor], routing: str, dynamic: Mapping[str, Sequence[int]] | None
) -> dict[str, dict[int, Any] | None]:
    """The axes of each input whose size may be another, as torch.export wants them."""
    if unknown := sorted(set(dynamic or {}) - set(given)):
        raise ValueError(f"dynamic names {unknown}, which are no inputs; these are {list(given)}")
    rows, shapes = torch.export.Dim("rows"), dict[str, dict[int, Any] | None]()
    for name, tensor in given.items():
        if name in INPUTS:
            shapes[name] = {0: rows} if routing == "rows" else None
            continue
        text = tensor.dim() > 1 and not tensor.is_floating_point() and not tensor.is_complex()
        axes = dynamic[name] if dynamic is not None and name in dynamic else [1] if text and dynamic is None else []
        shapes[name] = {0: rows} | {axis: torch.export.Dim.AUTO for axis in axes if axis}
    return shapes


def _exported(routed: Routed, given: Mapping[str, Tensor], shapes: Mapping[str, Any]) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(routed, (), dict(given), dynamic_shapes=dict(shapes))
    except Exception as error:  # whatever its own code or the model's raises
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise NoProgram(
            f"torch.export cannot trace {type(routed.model).__name__} with these inputs: {first.strip()}.  Inputs of "
            "other sizes, dynamic={} (nothing but the rows varies), or options of the forward may help"
        ) from error


def _manifest(model: DTSModel, inputs: Sequence[str], routing: str, places: int) -> Manifest:
    return Manifest(
        tasks={name: loaded.slot for name, loaded in model._loaded.items()},
        labels=_labels(model),
        rows=routing == "rows",
        places=places,
        inputs=[*INPUTS, *inputs],
        outputs=[],
        heads={name: _head(model, layer) for name, layer in model._layers.items() if layer.dts.heads},
    )


def in_turn(manifest: Manifest, rows: int) -> list[Selection] | Selection:
    """Every task that a program has, and the base where it can run, row after row; of one for all rows the first."""
    each = alone(manifest)
    return [each[row % len(each)] for row in range(rows)] if manifest.rows else each[0]


def alone(manifest: Manifest) -> list[Selection]:
    """Every task, and the base where it can run."""
    base: list[Selection] = [BASE] if all(head["base"] for head in manifest.heads.values()) else []
    return [*manifest.tasks, *base]


def _run(routed: Routed, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        return routed(**given)
    except (RuntimeError, IndexError) as error:  # a module that takes no value a row
        raise ValueError(NOT_SAME.format(first_line(error))) from error


def _same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless what is traced gives what the model gives."""
    for name, value in wanted.items():
        own = cut(found[name], value)
        if own.shape != value.shape:
            raise ValueError(NOT_SAME.format(f"{name} is {list(own.shape)} instead of {list(value.shape)}"))
        near = 1e-3 if value.dtype in (torch.float32, torch.float64) else 0.05
        if not torch.allclose(own, value, rtol=0, atol=near * largest(value), equal_nan=True):
            raise ValueError(NOT_SAME.format(f"{name} is another"))


def cut(found: Tensor, like: Tensor) -> Tensor:
    """A program has one width for all tasks; a call of one task its own."""
    return found[..., : like.shape[-1]] if found.dim() and like.dim() else found


def largest(value: Tensor) -> float:
    """The largest of the finite numbers' sizes."""
    finite = value[torch.isfinite(value)]
    wide = finite if finite.is_complex() else finite.double()
    return float(wide.abs().max()) if wide.numel() else 0.0


def _labels(model: DTSModel) -> dict[str, list[str]]:
    """The classes' names of each task that says them."""
    found = {}
    for name, loaded in model._loaded.items():
        given = loaded.model_config.get("id2label")
        if given:
            found[name] = [str(label) for _, label in sorted((int(i), label) for i, label in given.items())]
    return found


def _head(model: DTSModel, layer: Layer) -> dict[str, Any]:
    names, weight = model._loaded.names, layer.dts.get("weight")
    tensors = {} if weight is None else weight.values.tensors
    own = {names[slot]: list(tensors[slot].shape) if slot in tensors else [] for slot in sorted(layer.dts.heads)}
    return {"base": layer.dts.in_base, "tasks": own}
