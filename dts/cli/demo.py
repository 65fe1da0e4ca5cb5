"""`dts demo`: the main job on real input, from fine-tuning to a batch of many tasks."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from dts.cli.common import Json, bytes_text, emit, list_of, output
from dts.files import expanded

TEXT_WIDTH = 64  # characters shown of a text


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder of data sets (info.json and <task>.tsv.gz) instead of those that arrive with pip.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Which tasks: 'a, b, c'.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for adapters, report and plot.")] = Path("demo"),
    as_json: Json = False,
):
    """Fine-tune a real encoder on real tasks, compress, load one base with all of them, and answer."""
    try:
        from dts.demo.run import run
    except ImportError as error:
        raise ImportError(f"the demo needs {error.name}: pip install 'dts-merge[demo]'") from error

    report = run(data=data and expanded(data), names=list_of(tasks), out=expanded(out))
    emit(report, as_json, lambda: _show(report))


def _show(report: dict):
    output.print()
    output.print(_table(report))
    output.print(_sentence(report))
    output.print()
    output.print(_answers(report))
    output.print(f"\nWritten: {', '.join(report['written'])}; {report['seconds']:.0f} s", soft_wrap=True)
    output.print(_next(report), soft_wrap=True)


def _next(report: dict) -> str:
    """Commands that go on with what the demo left."""
    models, task = report["written"][-1], report["tasks"][0]
    name, adapter = task["name"], task["adapters"][-1]["folder"]
    return (
        f"\nGo on with the base, the fine-tunes and their test sets in {models}:\n"
        f"  dts list {Path(adapter).parent}\n"
        f"  dts diff {models}/base {models}/{name}\n"
        f"  dts eval {models}/base {models}/{name} {adapter} --data {models}/{name}.jsonl"
    )


def _table(report: dict) -> Table:
    from dts.demo.run import SHOWN

    table = Table(
        title="Accuracy on the test sets (%), and what an adapter costs",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("task (classes)")
    table.add_column("fine-\ntuned", justify="right")
    table.add_column("base", justify="right")
    table.add_column("adapter", no_wrap=True)
    for column in ("accu-\nracy", "agree", "bytes", "AMR\n%", "ADR\n%", "KL"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = [(f"{row['name']} ({len(row['class_names'])})", row) for row in report["tasks"]]
    for title, row in [*rows, ("mean", report["mean"])]:
        first = (title, f"{100 * row['accuracy_finetuned']:.1f}", f"{100 * row['accuracy_base']:.1f}")
        for adapter in (a for a in row["adapters"] if a["adapter"] in SHOWN):
            table.add_row(
                *first,
                f"{adapter['method']} {adapter['size']}",
                f"{100 * adapter['accuracy']:.1f}",
                f"{100 * adapter['agreement']:.1f}",
                bytes_text(round(adapter["bytes"])),
                f"{100 * adapter['amr']:.2f}",
                f"{100 * adapter['adr']:.2f}",
                f"{adapter['kl']:.4f}",
            )
            first = ("", "", "")
    return table


def _sentence(report: dict) -> str:
    memory = report["memory"]
    return (
        f"{len(report['tasks'])} tasks: {bytes_text(memory['base'])} base + {bytes_text(memory['adapters'])} of "
        f"packed adapters in memory, instead of {bytes_text(memory['full_finetunes'])} of full fine-tunes.\n"
        "base: the pretrained encoder under the task's own head.  AMR: bytes of the adapter / bytes of the base in "
        "fp32.  ADR: accuracy lost / accuracy fine-tuned.  Agree (%) and KL (nats): with the fine-tune's own answers."
    )


def _answers(report: dict) -> Table:
    table = Table(
        title="One batch, another task in every row, one forward pass",
        title_justify="left",
        box=None,
        show_header=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for row in report["mixed_batch"]:
        text = row["text"] if isinstance(row["text"], str) else " / ".join(row["text"])
        text = text if len(text) <= TEXT_WIDTH else text[: TEXT_WIDTH - 1] + "…"
        right = ("right", "green") if row["answer"] == row["truth"] else (f"wrong: {row['truth']}", "red")
        same = "as the fine-tune" if row["answer"] == row["finetuned"] else f"the fine-tune: {row['finetuned']}"
        table.add_row(row["task"], Text.assemble(text, "\n→ ", row["answer"], "  (", right, f"; {same})"))
    return table
