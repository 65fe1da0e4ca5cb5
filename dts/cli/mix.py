"""`dts mix`: adapters of seen tasks into one for a task never seen."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from dts.cli.common import (
    DryRun,
    Json,
    Overwrite,
    Revision,
    at,
    emit,
    foretell,
    list_of,
    listing,
    output,
    parse_size,
    progress_bar,
    said,
)
from dts.cli.inspect import account_of, summary, summary_table
from dts.files import expanded

OF_THE_ADAPTER = ("name", "size", "base", "head", "revision", "overwrite")  # which no weight depends on


def mix(
    context: typer.Context,
    adapters: Annotated[list[str], typer.Argument(help="Folders of adapters of one base.", show_default=False)],
    classes: Annotated[
        str | None,
        typer.Option(help="The new task's class names: 'a, b, c' or @file with one a line.", show_default=False),
    ] = None,
    description: Annotated[
        str | None,
        typer.Option(help="What the new task is; weighs by it where there are no --classes.", show_default=False),
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="Instead of names: task=0.7, once for each task.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write the mixture as an adapter; without, only the weights are shown.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the new task.")] = "mixture",
    size: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-s",
            help="Encode it anew into 1% (of the base in fp32) or 500KB; without, exact and as large as its parts.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            "-b",
            help="The base model: needed where an adapter holds whole tensors; makes --budget better.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="Of classifiers: zero-shot (of --classes, by the mixture itself), nearest, a task's name, a file with "
            "a head, or none.  Default zero-shot where --base has a tokenizer.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[str, typer.Option(help="'default', or a sentence-transformers folder or hub id.")] = "default",
    temperature: Annotated[
        float | None, typer.Option(help="Softmax of the similarities at this temperature.", show_default=False)
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the most similar tasks.", min=1, show_default=False)] = None,
    floor: Annotated[float | None, typer.Option(help="Only tasks at least this similar.", show_default=False)] = None,
    negative: Annotated[bool, typer.Option("--negative", help="Let unlike tasks count against.")] = False,
    revision: Revision = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
):
    """Mix adapters by the meaning of a new task's class names, and show why."""
    import dts
    from dts.adapter.folder import check_out
    from dts.checkpoint import open_checkpoint
    from dts.evaluate.models import quiet

    about = [word for name, word in said(context).items() if name in OF_THE_ADAPTER]
    if out is None and about:
        raise ValueError(
            f"{', '.join(about)}: of the adapter that --out writes, and without that only weights are shown"
        )
    base = at(base, revision)
    opened = {adapter.name: adapter for adapter in map(dts.Adapter.load, adapters)}
    if len(opened) < len(adapters):
        raise ValueError(
            f"two adapters have the same name; there are {', '.join(opened)}: give each once, or name one of them "
            "otherwise, by dts compress --name"
        )
    new = list_of(classes) or description
    if bool(new) == bool(weight):
        raise ValueError("say what the new task is by --classes or --description, or give every --weight task=0.7")
    of_names: dict[str, object] = {
        "--temperature": temperature,
        "--top-k": top_k,
        "--floor": floor,
        "--negative": negative or None,
        "--encoder": None if encoder == "default" else encoder,
    }
    if weight and (unused := [option for option, value in of_names.items() if value is not None]):
        raise ValueError(f"{', '.join(unused)}: they make weights of names, and --weight says the weights: leave out")
    weights: dict[str, float] = weights_of(weight)
    rows: list[dict] = []
    _check(weights, opened)
    if new:
        found = dts.unseen.task_weights(
            new, opened, encoder=encoder, temperature=temperature, top_k=top_k, floor=floor, negative=negative
        )
        weights, rows = dict(found), found.rows()
    if out is not None:
        source = None if base is None else open_checkpoint(base)
        head = head_of(head, opened, weights, source, list_of(classes))
    result = {"weights": dict(weights), "similarities": rows, "written": out is not None and not dry_run}
    if out is not None:
        foretell(dry_run, lambda: check_out(expanded(out), overwrite))
        with progress_bar("Mixing", in_bytes=True) as progress, quiet() if head else nullcontext():
            mixture = dts.unseen.mix(
                opened,
                weights,
                None if dry_run else out,
                name=name,
                class_names=list_of(classes),
                description=description,
                base=source,
                head=head,
                encoder=encoder,
                overwrite=overwrite,
                progress=progress,
                **(parse_size(size) if size else {}),
            )
        result["adapter"] = summary(mixture) | {"folder": str(out)} | account_of(mixture)
    emit(result, as_json, lambda: _show(result))


def head_of(head: str | None, opened: dict, weights: dict, base, classes: list[str] | None) -> str | None:
    """What `dts.unseen.mix` takes as the head; says why there is none where the members have one.

    base: a `Checkpoint`, if there is one.
    """
    from dts.adapter.tokenizer import has_tokenizer
    from dts.unseen.heads import ZERO_SHOT, NoHead, class_layer
    from dts.warn import warn

    heads = [task for task in weights if task in opened and class_layer(opened[task])]
    if head is not None or not heads:
        return None if head == "none" else head
    if classes and base is not None and base.folder is not None and has_tokenizer(base.folder):
        return ZERO_SHOT
    lacks = "--classes" if not classes else "--base" if base is None else f"a tokenizer in {base.source}"
    warn(
        f"the mixture has no head: those of {', '.join(heads)} are of their own classes, and a zero-shot one needs "
        f"{lacks}; --head nearest takes one of theirs, --head FILE one of yours, --head none none",
        NoHead,
    )
    return None


def weights_of(given: list[str] | None) -> dict[str, float]:
    """``["sst2=0.7", "trec=0.3"]`` -> {"sst2": 0.7, "trec": 0.3}."""
    weights = {}
    for item in given or []:
        task, _, value = item.rpartition("=")
        if task in weights:
            raise ValueError(f"--weight names {task!r} twice")
        try:
            weights[task] = float(value)
        except ValueError:
            task = ""
        if not task:
            raise ValueError(f"--weight {item!r} is not task=number, as in sst2=0.7")
    return weights


def _check(weights: dict[str, float], opened: dict) -> None:
    """Raises ValueError with all that is wrong with weights: also where they are only shown."""
    wrong = [f"{task}={weight} is no number to mix by" for task, weight in weights.items() if not math.isfinite(weight)]
    if unknown := [task for task in weights if task not in opened]:
        wrong.append(f"no adapter {', '.join(unknown)}; there are {', '.join(opened)}")
    if wrong:
        raise ValueError("--weight: " + "; ".join(wrong))


def _show(result: dict):
    table = listing(
        "What the mixture is made of", "task", "similarity", "weight", "nearest classes", text=("nearest classes",)
    )
    for row in result["similarities"]:
        nearest = f"{row['class']} ~ {row['nearest']} ({row['nearest_similarity']:.2f})"
        table.add_row(row["task"], f"{row['similarity']:.3f}", f"{row['weight']:.3f}", nearest)
    for task, value in result["weights"].items() if not result["similarities"] else ():
        table.add_row(task, "", f"{value:.3f}", "")
    output.print(table)
    if not result["weights"]:
        output.print("No task is similar enough: the mixture is the base itself.")
    if "adapter" in result:
        output.print(summary_table(result["adapter"], "Wrote" if result["written"] else "Would write"))
