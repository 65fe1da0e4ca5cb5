"""`dts export torch`, `aoti` and `onnx`: one program of a base and many tasks."""

from pathlib import Path
from typing import Annotated

import typer

from dts.cli.common import Base, Json, Overwrite, Revision, TrustRemoteCode, at, bytes_text, emit, errors, output

Adapters = Annotated[list[Path], typer.Argument(help="Folders of the adapters.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="The file: .pt2, or .onnx.", show_default=False)]
Routing = Annotated[
    str, typer.Option(help="rows: a task or mixture for each row of the batch; call: one for all rows.")
]
Places = Annotated[int, typer.Option(help="How many tasks a mixture may have.")]
ROWS = 3  # of the example; another number may be given later


def torch(
    adapters: Adapters,
    base: Base,
    out: Out,
    routing: Routing = "rows",
    places: Places = 1,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
):
    """Write a program for torch.export.load: the base, all tasks packed, and the routing as an input."""
    _write("torch", adapters, at(base, revision), out, routing, places, overwrite, as_json, trust_remote_code)


def aoti(
    adapters: Adapters,
    base: Base,
    out: Out,
    routing: Routing = "rows",
    places: Places = 1,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
):
    """Write the same as machine code for this machine, by AOTInductor, for Python and C++; takes a minute or more."""
    _write("aoti", adapters, at(base, revision), out, routing, places, overwrite, as_json, trust_remote_code)


def onnx(
    adapters: Adapters,
    base: Base,
    out: Out,
    routing: Routing = "rows",
    places: Places = 1,
    factors: Annotated[
        str, typer.Option(help="initialisers; or inputs: a caller may give others, and they stay packed in memory.")
    ] = "initialisers",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
):
    """Write the same as ONNX, for onnxruntime and OpenVINO (needs the extra onnx): factors keep their two bits."""
    _write("onnx", adapters, at(base, revision), out, routing, places, overwrite, as_json, trust_remote_code, factors)


def _write(
    format: str,
    adapters: list[Path],
    base: str,
    out: Path,
    routing: str,
    places: int,
    overwrite: bool,
    as_json: bool,
    trusted: bool,
    factors: str = "initialisers",
) -> None:
    import dts
    from dts.evaluate.models import quiet
    from dts.exports.program import check_out, load_program, measured, torch_program, write_program

    check_out(out, format, overwrite)
    found = [dts.Adapter.load(folder) for folder in adapters]
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several adapters are called {', '.join(twice)}: rename the tasks, a program has each once")
    with quiet():
        model = dts.DTSModel.from_pretrained(base, adapters=dict(zip(names, found)), trust_remote_code=trusted or None)
    with errors.status(f"Writing {out}"):
        program = torch_program(model, _example(model), routing, places)
        write_program(program, out, format, factors, overwrite)
        try:
            loaded = load_program(out)
        except ImportError as error:  # ONNX can be written without a run-time
            loaded = None
            errors.print(f"The file was not run here: {error}", soft_wrap=True)
        figures = measured(model, program, out, loaded)
    result = {
        "out": str(out),
        "format": format,
        "routing": routing,
        "places": places,
        "tasks": program.manifest.tasks,
        "inputs": program.manifest.inputs,
        "outputs": program.manifest.outputs,
        **figures.as_dict(),
    }

    def show() -> None:
        adapters_text = "" if figures.adapters is None else f" ({bytes_text(figures.adapters)} in the adapters)"
        output.print(
            f"Wrote {out}: {bytes_text(figures.nbytes)}: base {bytes_text(figures.base)}, {len(names)} tasks "
            f"{bytes_text(figures.factors)}{adapters_text}, {'code' if format == 'aoti' else 'graph'} "
            f"{bytes_text(max(0, result['bytes_graph']))}",
            soft_wrap=True,
        )
        if figures.difference is not None:
            output.print(
                f"Answers differ from the model's by at most {figures.difference:.1e} of the largest (its own fast "
                f"products by {figures.fast:.1e})",
                soft_wrap=True,
            )
        output.print(f"Inputs: {', '.join(program.manifest.inputs)}", soft_wrap=True)
        output.print("Slots: " + ", ".join(f"{name} {slot}" for name, slot in program.manifest.tasks.items()))

    emit(result, as_json, show)


def _example(model):
    """Made-up inputs of the model's kind."""
    import torch

    from dts.evaluate.inputs import made_up

    main = getattr(model, "main_input_name", None)
    if main not in ("input_ids", "pixel_values") or getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"inputs for {type(model.model).__name__} ({main}) cannot be made up here: give an example in Python, "
            "dts.exports.torch_program(model, inputs)"
        )
    made = made_up(model.config, main == "pixel_values", ROWS).inputs
    if main == "pixel_values":
        return {main: torch.stack(made)}
    ids = torch.tensor(made)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
