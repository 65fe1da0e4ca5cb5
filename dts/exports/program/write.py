"""A program as a file of torch.export, AOTInductor or ONNX, with its manifest in the file's own metadata."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dts.exports.program.manifest import KEY
from dts.exports.program.trace import NoProgram, Program
from dts.files import expanded, one_file

FORMATS = {"torch": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
FACTORS = ("initialisers", "inputs")
LARGEST = 1_900_000_000  # bytes of an ONNX file in one piece: protobuf ends at 2 GiB
MISSING = "ONNX is written with onnx and onnxscript: pip install 'dts-merge[onnx]'"


def write_program(
    program: Program, out: str | Path, format: str = "torch", factors: str = "initialisers", overwrite: bool = False
) -> Path:
    """Writes a program to a file and returns its path.

    format: "torch", for `torch.export.load`;  "aoti", machine code for this machine, for Python and C++ (needs a C++
    compiler);  "onnx"
    factors: of ONNX; "inputs" lets a caller give others and keeps run-times from decoding them once and for all, which
    is faster but takes 16 times their memory
    Raises ValueError for a name that does not end as the format's files do, FileExistsError, ImportError without onnx,
    NoProgram where the library cannot write the program, OSError where the disk cannot.
    """
    out = expanded(out)
    if format not in FORMATS or factors not in FACTORS:
        raise ValueError(
            f"format is one of {list(FORMATS)} and factors of {list(FACTORS)}, not {format!r}, {factors!r}"
        )
    check_out(out, format, overwrite)
    write: dict[str, Callable[[], None]] = {
        "torch": lambda: _torch(program, place),
        "aoti": lambda: _aoti(program, place),
        "onnx": lambda: _onnx(program, place, factors),
    }
    with one_file(out) as place:
        try:
            write[format]()
        except (ImportError, OSError):
            raise
        except Exception as error:  # whatever a compiler or an exporter raises
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            first = next((line for line in str(cause).splitlines() if line.strip()), "")
            raise NoProgram(
                f"the program cannot be written as {format}: {type(cause).__name__}: {first.strip()}"
            ) from error
    return out


def check_out(out: Path, format: str, overwrite: bool) -> None:
    """Raises ValueError or FileExistsError where a program of this format may not be written."""
    if out.suffix != FORMATS[format]:
        raise ValueError(f"a program of format {format} is a file {FORMATS[format]}, not {out.name}")
    if out.is_dir():
        raise FileExistsError(f"{out} is a folder: choose a file")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists: choose another, or have it overwritten by overwrite=True (--overwrite)")
    if out.exists() and out.suffix == ".pt2" and not zipfile.is_zipfile(out):
        raise FileExistsError(f"{out} exists and is no program: choose another file")


def _torch(program: Program, path: Path) -> None:
    torch.export.save(program.exported, path, extra_files={KEY: program.manifest.as_json()})


def _aoti(program: Program, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    manifest = program.manifest
    metadata = {KEY: manifest.as_json(), "inputs": ",".join(manifest.inputs), "outputs": ",".join(manifest.outputs)}
    metadata |= {"places": str(manifest.places), "rows": str(int(manifest.rows))}
    metadata |= {f"task {name}": str(slot) for name, slot in manifest.tasks.items()}  # C++ reads no JSON by itself
    with torch.no_grad():
        aoti_compile_and_package(
            program.exported,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": metadata},
        )


def _onnx(program: Program, path: Path, factors: str) -> None:
    try:
        import onnx  # noqa: F401  # so that it is missed before anything is made
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(MISSING) from error
    made: Any = torch.onnx.export(
        program.exported,
        dynamo=True,
        optimize=False,  # its folding would decode the factors, and run-times have their own
        verbose=False,
        output_names=program.manifest.outputs,
    )
    model = made.model
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    if factors == "inputs":
        model.graph.inputs.extend(v for name, v in model.graph.initializers.items() if name in program.factors)
    model.metadata_props[KEY] = program.manifest.as_json()
    made.save(str(path), external_data=program.base + sum(program.factors.values()) > LARGEST)
