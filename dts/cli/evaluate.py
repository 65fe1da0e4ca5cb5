"""`dts eval`: base, fine-tune and adapters on the same inputs."""

from pathlib import Path
from typing import Annotated

import typer

from dts.cli.common import (
    Device,
    FinetunedRevision,
    InputColumn,
    Json,
    MaxLength,
    Only,
    Revision,
    TrustRemoteCode,
    at,
    bytes_text,
    emit,
    list_of,
    listing,
    output,
    percent,
    progress_bar,
    said,
)
from dts.files import expanded

DTYPES = ("float32", "bfloat16", "float16")


def evaluate(
    context: typer.Context,
    base: Annotated[str, typer.Argument(help="Folder or hub id of the base model.", show_default=False)],
    finetuned: Annotated[str, typer.Argument(help="Folder or hub id of the full fine-tune.", show_default=False)],
    adapters: Annotated[list[str], typer.Argument(help="Folders of adapters of it.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="A .csv, .tsv, .jsonl or .parquet file with named columns, a .txt file with a text a line, or the id "
            "of a data set on the hub.  Without it inputs are made up at random.",
            show_default=False,
        ),
    ] = None,
    text: InputColumn = None,
    label: Annotated[str | None, typer.Option(help="Column of the right answers.", show_default=False)] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names of the fine-tune's classes, 'a, b' or @file; default from its config.", show_default=False
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a hub data set; default test.", show_default=False)] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many rows, drawn at random.", show_default=False)
    ] = None,
    made_up: Annotated[
        int | None,
        typer.Option("--made-up", min=1, max=1_000_000, help="How many inputs to make up.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that are run at once.")] = 16,
    max_length: MaxLength = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder of the tokenizer or image processor; default the fine-tune's, the base's.", show_default=False
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help=f"{', '.join(DTYPES)}; default that of the fine-tune.", show_default=False)
    ] = None,
    device: Device = "cpu",
    plot: Annotated[Path | None, typer.Option(help="Write a plot to this file.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of made-up inputs and of --limit.")] = 0,
    revision: Revision = None,
    finetuned_revision: FinetunedRevision = None,
    only: Only = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
):
    """Measure how much of a fine-tune its adapters keep: accuracy or perplexity, agreement with it, KL, seconds.

    Text and image classifiers and language models of transformers.  One model is in memory at a time.
    """
    import importlib.util

    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError("dts eval runs models of transformers: pip install 'dts-merge[hf]'") from error
    import torch

    from dts.devices import device_named
    from dts.evaluate.data import read
    from dts.evaluate.run import Setting
    from dts.evaluate.run import evaluate as compare

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: it is one of {', '.join(DTYPES)}")
    of_data = {"--text": text, "--label": label, "--limit": limit, "--split": split}
    of_data |= {"--max-length": max_length, "--tokenizer": tokenizer}
    if data is None and (given := [option for option, value in of_data.items() if value]):
        raise ValueError(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} about --data: give that too")
    if data is not None and limit is None and "seed" in said(context):
        raise ValueError("--seed: nothing is drawn where all of --data is taken: it goes with --limit")
    if data is not None and made_up is not None:
        raise ValueError("--data and --made-up are two kinds of inputs: keep one")
    if plot is not None:  # before minutes of work
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError("--plot needs the package matplotlib: pip install 'dts-merge[plot]'")
        from dts.evaluate.plot import check_place

        plot = check_place(expanded(plot))
    examples = None if data is None else read(data, text, label, split).sampled(limit, seed)
    setting = Setting(
        batch=batch_size,
        longest=max_length,
        dtype=None if dtype is None else getattr(torch, dtype),
        device=str(device_named(device)),
        tokenizer=tokenizer,
        classes=list_of(classes),
        made_up=made_up,
        seed=seed,
        trusted=trust_remote_code,
        part=only,
    )
    with progress_bar("Running") as progress:
        report = compare(at(base, revision), at(finetuned, finetuned_revision), adapters, examples, setting, progress)
    if plot is not None:
        from dts.evaluate.plot import plot as draw

        draw(report, plot)
        report["plot"] = str(plot)
    emit(report, as_json, lambda: _show(report))


def _show(report: dict):
    inputs, rows = report["inputs"], report["models"]
    language = report["kind"] == "language model"
    columns = [*(["perplexity" if language else "accuracy"] if inputs["labelled"] else []), "agreement", "KL, nats"]
    table = listing(None, "model", *columns, "bytes", "of base", "seconds")
    for row in rows:
        right = f"{row['perplexity']:.3f}" if language and row["perplexity"] else percent(row["accuracy"], 1)
        table.add_row(
            f"{row['name']} ({row['what']})" if row["what"] != "adapter" else row["name"],
            *([right] if inputs["labelled"] else []),
            percent(row["agreement"], 1) if row["what"] != "fine-tune" else "",
            "" if row["what"] == "fine-tune" else "–" if row["kl"] is None else f"{row['kl']:.5f}",
            bytes_text(row["bytes"]),
            percent(row["amr"]) if "amr" in row else "",
            f"{row['seconds']:.1f}",
        )
    output.print(_about(inputs, report), soft_wrap=True)
    output.print(table)
    output.print("agreement, KL: with the fine-tune's own answers; KL 0 is equal")
    if rows[-1]["kl_places"] < rows[-1]["places"]:
        output.print(f"KL: over {rows[-1]['kl_places']:,} of {rows[-1]['places']:,} answers, which memory bounds")
    for row in rows:
        if "why" in row:
            output.print(f"{row['name']} ({row['what']}) cannot run these inputs: {row['why']}", soft_wrap=True)
        if "verdict" in row:
            output.print(f"{row['name']}: {row['verdict']}", soft_wrap=True)
    if "plot" in report:
        output.print(f"Wrote {report['plot']}", soft_wrap=True)


def _about(inputs: dict, report: dict) -> str:
    how = f"{report['kind']}, {report['dtype']}, {report['device']}"
    if inputs["made_up"]:
        return (
            f"{inputs['count']:,} MADE-UP inputs ({inputs['source']}); {how}\n"
            "They show that the adapters run and how near they are, not how good: give your own by --data"
        )
    read = ", ".join(f"{what} from column {name}" for what, name in inputs["columns"].items())
    count = f"{inputs['count']:,}" + (f" of {inputs['of']:,}" if inputs["count"] < inputs["of"] else "")
    return f"{count} inputs of {inputs['source']} ({read}); {how}"
