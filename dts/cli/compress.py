"""`dts compress`: a base and full fine-tunes of it in, an adapter each out."""

import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dts.cli.common import (
    FinetunedRevision,
    Json,
    Overwrite,
    Revision,
    at,
    bytes_text,
    emit,
    list_of,
    listing,
    output,
    parse_fraction,
    parse_size,
    percent,
    progress_bar,
)
from dts.cli.inspect import account_of, summary, summary_table

DEFAULT_SIZE = "1%"
ANSWERS = (
    "squared error: of the difference, 0 is exact.  answers: how many are predicted to be the fine-tune's own, from "
    "tasks that were measured with this method and error; dts eval measures them"
)
MODEL_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


class Method(StrEnum):
    auto = "auto"
    residual = "residual"
    paper = "paper"
    sketch = "sketch"


class Vectors(StrEnum):
    auto = "auto"
    exact = "exact"
    eight_bit = "8bit"


class Kind(StrEnum):
    task = "task"
    difference = "difference"


def compress(
    base: Annotated[str, typer.Argument(help="Folder, file or hub id of the base model.", show_default=False)],
    finetuned: Annotated[list[str], typer.Argument(help="One or more full fine-tunes of it.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Where the adapter goes; with several fine-tunes, the folder of all of them.",
            show_default=False,
        ),
    ],
    size: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-s",
            help=f"Bytes of the whole adapter: 1% (of the base in fp32), 500KB, 5MB.  Default {DEFAULT_SIZE}.",
            show_default=False,
        ),
    ] = None,
    rank_fraction: Annotated[
        str | None,
        typer.Option(
            help="Instead of a size: the same share of the rank of every matrix, 0.3 or 30%.", show_default=False
        ),
    ] = None,
    target_error: Annotated[
        str | None,
        typer.Option(help="Instead of a size: the squared relative error to reach, 0.1 or 10%.", show_default=False),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="residual: components alone.  sketch: three quarters of the "
            "bytes for a random sample of the rest, whose noise costs less than what "
            "is missing where the fine-tune is near its base.  auto: sketch there "
            "(weights moved by less than 3 %), else residual.  paper: as published."
        ),
    ] = Method.auto,
    vectors: Annotated[
        Vectors,
        typer.Option(
            help="Biases and norms: exact, or rounded to 8 bits.  auto: 8bit with a "
            "--budget, whose bytes the matrices need more."
        ),
    ] = Vectors.auto,
    kind: Annotated[
        Kind, typer.Option(help="task: the base is the pretrained model.  difference: it is a merged one.")
    ] = Kind.task,
    name: Annotated[
        str | None, typer.Option(help="Name of the task; default the fine-tune's folder name.", show_default=False)
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            help="Names of its classes, 'a, b, c' or @file with one a line; default from its config.",
            show_default=False,
        ),
    ] = None,
    description: Annotated[str | None, typer.Option(help="A sentence on what it does.", show_default=False)] = None,
    merge: Annotated[
        str | None,
        typer.Option(
            help="With --kind difference: merge the fine-tunes by this method (see "
            "dts merge --methods) and write out/base and out/adapters; the base may then be 'none'.",
            show_default=False,
        ),
    ] = None,
    revision: Revision = None,
    finetuned_revision: FinetunedRevision = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Overwrite = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Make an adapter of a fine-tune that equals its base too.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing: predict the bytes and the error, with its bounds, from the singular values.",
        ),
    ] = False,
    tensors: Annotated[
        bool, typer.Option("--tensors", "-t", help="With --dry-run: list every compressed tensor.")
    ] = False,
    as_json: Json = False,
):
    """Turn full fine-tunes into adapters of about 1 % of the model."""
    import dts

    base = at(base, revision)
    finetuned = [at(source, finetuned_revision) for source in finetuned]
    how = _how(size, rank_fraction, target_error)
    if tensors and not dry_run:
        raise ValueError("--tensors goes with --dry-run; of an adapter that is there, dts inspect --tensors lists them")
    if len(finetuned) > 1 and (name or class_names or description):
        raise ValueError("--name, --class-names and --description are of one task: compress the fine-tunes one by one")
    if merge:
        results = _merged(base, finetuned, out, merge, method, vectors, kind, how, resume or dry_run or overwrite)
        return emit(results, as_json, lambda: _show(results))
    results = []
    for task, source in named(finetuned).items():
        folder = out / task if len(finetuned) > 1 else out
        with progress_bar(f"{'Predicting' if dry_run else 'Compressing'} {source}", in_bytes=True) as progress:
            adapter = dts.compress(
                base,
                source,
                out=folder,
                method=method.value,
                vectors=vectors.value,
                kind=kind.value,
                name=name,
                class_names=list_of(class_names),
                description=description,
                resume=resume,
                overwrite=overwrite,
                dry_run=dry_run,
                progress=progress,
                allow_empty=allow_empty,
                **how,
            )
        results.append(summary(adapter) | {"folder": str(folder), "written": not dry_run} | account_of(adapter))
        if dry_run:
            results[-1]["predicted"] = adapter.prediction and asdict(adapter.prediction)
    emit(results[0] if len(results) == 1 else results, as_json, lambda: _show(results, tensors))


def _how(size: str | None, rank_fraction: str | None, target_error: str | None) -> dict[str, Any]:
    """The one size asked for, as a keyword of `dts.compress`."""
    asked = {"budget": size, "rank-fraction": rank_fraction, "target-error": target_error}
    given = [f"--{option}" for option, value in asked.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} say the size twice: keep one")
    if rank_fraction is not None:
        return {"rank_fraction": parse_fraction(rank_fraction)}
    if target_error is not None:
        return {"target_error": parse_fraction(target_error)}
    return parse_size(size or DEFAULT_SIZE)


def named(sources: list[str]) -> dict[str, str]:
    """{task: source}, each named by its folder, or its file without the ending."""
    from dts.checkpoint.hub import split_revision

    # "." has no name; a link has its own
    paths = {source: Path(os.path.abspath(split_revision(source)[0])) for source in sources}
    names = {source: path.stem if path.suffix in MODEL_FILES else path.name for source, path in paths.items()}
    if len(set(names.values())) < len(sources):
        raise ValueError(f"fine-tunes must have names of their own, not {', '.join(names.values())}: rename a folder")
    return {name: source for source, name in names.items()}


def _merged(base, finetuned, out, merge, method, vectors, kind, how, other: bool) -> list[dict]:
    """Merge, and compress each fine-tune's difference to the merged base."""
    from dts.merge import compress_difference

    if kind is not Kind.difference:
        raise ValueError("--merge makes difference vectors: say --kind difference as well")
    if other:
        raise ValueError(
            "--dry-run, --resume and --overwrite do not go with --merge: run dts merge, then dts compress "
            "--kind difference against the merged model"
        )
    with progress_bar(f"Merging by {merge}, compressing") as progress:
        _, adapters = compress_difference(
            None if base.lower() == "none" else base,
            named(finetuned),
            merge,
            out,
            progress=progress,
            codec=method.value,
            vectors=vectors.value,
            **how,
        )
    return [summary(adapter) | {"written": True} | account_of(adapter) for adapter in adapters.values()]


def _show(results: list[dict], tensors: bool = False):
    if len(results) == 1:
        output.print(summary_table(results[0], "Wrote" if results[0]["written"] else "Would write"))
    else:
        _show_several(results)
    for row in results:
        if not row["written"]:
            _show_predicted(row, tensors)


def _show_several(results: list[dict]):
    from dts.adapter.expected import span

    table = listing(None, "adapter", "bytes", "of base", "squared error", "answers", "folder", text=("folder",))
    for row in results:
        error = "" if row["squared_error"] is None else f"{row['squared_error']:.3f}"
        answers = span(row["method"], row["squared_error"]) or "–"
        table.add_row(row["name"], bytes_text(row["bytes"]), percent(row["amr"]), error, answers, row["folder"])
    output.print(table)
    output.print(ANSWERS, soft_wrap=True)


def _show_predicted(result: dict, tensors: bool):
    from dts.adapter.expected import in_words

    predicted = result["predicted"]
    output.print(
        f"\n{result['name']}: predicted squared error {predicted['squared_error']:.3f} of the difference, "
        f"bounds {predicted['lower']:.3f} to {predicted['upper']:.3f}"
    )
    if words := in_words(result["method"], predicted["squared_error"]):
        output.print(words, soft_wrap=True)
    if not tensors:
        output.print("--tensors lists every compressed tensor")
        return
    table = listing(None, "tensor", "shape", "rank", "norm", "error²", "lower", "upper")
    for row in predicted["tensors"]:
        ranks = sorted(set(row["ranks"]))
        table.add_row(
            row["name"],
            " x ".join(map(str, row["shape"])),
            str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
            f"{row['norm']:.3g}",
            *(f"{row[key]:.3f}" for key in ("squared_error", "lower", "upper")),
        )
    output.print(table)
