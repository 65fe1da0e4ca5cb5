"""`dts bench`: tune the GPU kernels, and the benchmark suites of a checkout."""

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from dts.cli.common import Json, emit, errors, output

bench = typer.Typer(no_args_is_help=True, help="Measure this machine: kernels, and quality against other methods.")

SUITES = {  # name -> (module, its first words)
    "published": ("benchmarks.quality.published", "The papers' benchmarks from hub ids: CLIP on images, GLUE on text."),
    "merging": ("benchmarks.quality.merging", "Merged bases, difference vectors, unseen tasks and routing."),
    "cpu": ("benchmarks.kernels.cpu", "The CPU kernels beside nn.Linear, LoRA and dense models."),
    "gpu": ("benchmarks.kernels.gpu", "The GPU kernels beside their alternatives."),
    "machine-code": ("benchmarks.kernels.sass", "Registers, spills, instructions of the GPU kernels; needs no GPU."),
}
QUALITY = {name: f"benchmarks.quality.{name}" for name in ("text", "images", "language")}
QUALITY_HELP = """dts bench quality [--suite text|images|language] [--report FOLDER] [options of the suite]
dts bench quality --results FILES --report FOLDER     the page only, from rows measured before

--report FOLDER is the suite's own --out.  The suite's options:
"""
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@bench.command("tune")
def tune(
    shape: Annotated[
        list[str],
        typer.Option(help="Layer and rank, OUTxINxRANK as in 4096x4096x1228; may be repeated.", show_default=False),
    ],
    dtype: Annotated[
        list[str] | None, typer.Option(help="float16, bfloat16; default bfloat16.", show_default=False)
    ] = None,
    as_json: Json = False,
):
    """Measure kernel configurations on this GPU and keep the best for later runs."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError("tuning measures a CUDA device, and there is none here")
    from dts_kernels.gpu.tune import tune as tune_kernels

    path = tune_kernels([shape_of(text) for text in shape], dtypes=tuple(dtype or ["bfloat16"]), progress=errors.print)
    emit({"written": str(path)}, as_json, lambda: output.print(f"Wrote {path}", soft_wrap=True))


def shape_of(text: str) -> tuple[int, int, int]:
    """``4096x11008x1228`` -> (4096, 11008, 1228)."""
    numbers = text.lower().split("x")
    if len(numbers) != 3 or not all(n.isdigit() and int(n) for n in numbers):
        raise ValueError(f"shape {text!r} is not OUTxINxRANK, as in 4096x4096x1228")
    m, n, rank = map(int, numbers)
    return m, n, rank


@bench.command("quality", context_settings=PASS_ON)
def quality(
    context: typer.Context,
    suite: Annotated[str, typer.Option(help="text, images, language, or several by commas.")] = "text",
    report: Annotated[
        Path | None, typer.Option(help="Folder of the page over all suites, its plots and figures.", show_default=False)
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(
            help="Measure nothing: the page from these files or folders of rows, by commas.", show_default=False
        ),
    ] = None,
):
    """Accuracy, agreement and KL against bytes, beside other methods.  More options: dts bench quality --help"""
    if "--help" in context.args:
        output.print(QUALITY_HELP)
    where = ["--out", str(report)] if report else []
    if results is not None:
        if not report:
            raise ValueError("--results makes a page: say where, as in --report out/")
        return run("benchmarks.quality.report", ["--results", *results.split(","), *where, *context.args])
    suites = suite.split(",")
    unknown = [name for name in suites if name not in QUALITY]
    if unknown:
        raise ValueError(f"no suite {', '.join(unknown)}; there are {', '.join(QUALITY)}")
    for name in suites:
        run(QUALITY[name], [*context.args, *where])


def _add(name: str, module: str, text: str):
    @bench.command(name, help=f"{text}  More options: dts bench {name} --help", context_settings=PASS_ON)
    def suite(
        context: typer.Context,
        report: Annotated[Path | None, typer.Option(help="Folder of results and plots.", show_default=False)] = None,
    ):
        run(module, [*context.args, *(["--out", str(report)] if report else [])])


def run(module: str, arguments: list[str]) -> None:
    """A benchmark module as ``python -m`` would run it."""
    if importlib.util.find_spec("benchmarks") is None:
        raise ImportError("the suites are in the project's checkout, not in the installed package: run this there")
    before, sys.argv = sys.argv, [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as done:
        if done.code:
            raise typer.Exit(done.code if isinstance(done.code, int) else 1) from done
    finally:
        sys.argv = before


for _name, (_module, _text) in SUITES.items():
    _add(_name, _module, _text)
