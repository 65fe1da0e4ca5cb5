"""A program's file run from Python, by the run-time that it is for, with tasks by name."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dts.exports.program.manifest import INPUTS, KEY, Manifest
from dts.files import expanded
from dts.nn.selection import Selections

Run = Callable[[dict[str, Tensor]], Mapping[str, Any]]
RUNTIMES = ("onnxruntime", "openvino")


class LoadedProgram:
    """Called as a `DTSModel` is: ``program(tasks=["mood", "topic"], input_ids=...)`` -> {output: tensor}.

    manifest: the tasks, their labels, inputs and outputs.
    """

    def __init__(self, manifest: Manifest, run: Run):
        self.manifest, self._run = manifest, run

    def __call__(self, tasks: Selections = None, **inputs: Tensor) -> dict[str, Tensor]:
        """tasks: one item for all rows or a list with one a row, None is the base;  inputs: all of the model's.

        Raises ValueError as `Manifest.routing` does, for inputs that are missing or unknown, and for no rows where the
        program cannot answer none.
        """
        names = [name for name in self.manifest.inputs if name not in INPUTS]
        if sorted(names) != sorted(inputs):
            raise ValueError(f"the program's inputs are {names}, not {list(inputs)}")
        rows = next(iter(inputs.values())).shape[0]
        given = self.manifest.routing(tasks, rows) | {name: inputs[name] for name in names}
        try:
            with torch.no_grad():
                found = self._run(given)
        except (ArithmeticError, RuntimeError) as error:
            if rows:
                raise
            raise ValueError("this program answers no batch without rows: leave the call out") from error
        return {name: torch.as_tensor(found[name]) for name in self.manifest.outputs}


def load_program(path: str | Path, runtime: str = "onnxruntime") -> LoadedProgram:
    """What `dts.exports.write_program` wrote, ready to run on this machine.

    runtime: of ONNX files, "onnxruntime" or "openvino".  A file of AOTInductor holds machine code: load only your own.
    Raises FileNotFoundError, ValueError for a file that is no such program, ImportError without the run-time.
    """
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no program at {path}")
    if path.suffix == ".onnx":
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime is one of {list(RUNTIMES)}, not {runtime!r}")
        return LoadedProgram(*(_onnxruntime if runtime == "onnxruntime" else _openvino)(path))
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no program: neither .onnx nor an archive .pt2")
    with zipfile.ZipFile(path) as archive:
        compiled = any("/data/aotinductor/" in name for name in archive.namelist())
    return LoadedProgram(*(_aoti if compiled else _exported)(path))


def _exported(path: Path) -> tuple[Manifest, Run]:
    extra = {KEY: ""}
    exported = torch.export.load(path, extra_files=extra)
    module = exported.module()
    return Manifest.from_json(extra[KEY], path), lambda given: module(**given)


def _aoti(path: Path) -> tuple[Manifest, Run]:
    from torch._inductor import aoti_load_package

    package: Any = aoti_load_package(str(path))
    manifest = Manifest.from_json(package.loader.get_metadata().get(KEY), path)
    return manifest, lambda given: package(**given)


def _onnxruntime(path: Path) -> tuple[Manifest, Run]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX files run in onnxruntime: pip install 'dts-merge[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # that inputs have defaults is meant
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    manifest = Manifest.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), path)

    def run(given: dict[str, Tensor]) -> Mapping[str, Any]:
        found = session.run(manifest.outputs, {name: tensor.numpy() for name, tensor in given.items()})
        return dict(zip(manifest.outputs, found))

    return manifest, run


def _openvino(path: Path) -> tuple[Manifest, Run]:
    try:
        import openvino
    except ImportError as error:
        raise ImportError("OpenVINO is a package of its own: pip install openvino") from error
    model = openvino.Core().read_model(str(path))
    stored = model.get_rt_info(["framework", KEY]) if model.has_rt_info(["framework", KEY]) else None
    manifest = Manifest.from_json(None if stored is None else str(stored.value), path)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(given: dict[str, Tensor]) -> Mapping[str, Any]:
        found = compiled({name: tensor.numpy() for name, tensor in given.items()})
        return {name: found[name] for name in manifest.outputs}

    return manifest, run
