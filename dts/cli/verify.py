"""`dts verify`: is an adapter whole, for this base, and as exact as it says?"""

from typing import Annotated

import typer

from dts.cli.common import (
    CHECK_FAILED,
    FinetunedRevision,
    Json,
    Only,
    Revision,
    State,
    Vocabulary,
    at,
    counts_text,
    emit,
    of_state,
    output,
)


def verify(
    adapter: Annotated[str, typer.Argument(help="Folder of the adapter.", show_default=False)],
    base: Annotated[str, typer.Argument(help="The base it should belong to.", show_default=False)],
    finetuned: Annotated[
        str | None, typer.Argument(help="Its fine-tune: measures the errors again.", show_default=False)
    ] = None,
    revision: Revision = None,
    finetuned_revision: FinetunedRevision = None,
    state: State = None,
    only: Only = None,
    vocabulary: Vocabulary = None,
    as_json: Json = False,
):
    """Check an adapter's bytes, its base and, with the fine-tune, its errors; exit code 1 if anything is wrong."""
    import dts
    from dts.adapter import AdapterError, Report
    from dts.adapter.accounting import of_model
    from dts.checkpoint import open_checkpoint
    from dts.checkpoint.fitted import fitted

    base, finetuned = at(base, revision), at(finetuned, finetuned_revision)
    if finetuned is None and (state or only or vocabulary):
        raise ValueError("--state, --only and --vocabulary say something of the fine-tune: give it too")
    opened = open_checkpoint(base, dequantise=True)  # which a quantised base is that an adapter was made for
    source = None if finetuned is None else open_checkpoint(of_state(finetuned, state))
    source = source and fitted(opened, source, only, vocabulary)
    name = adapter
    try:  # what is altered is told by the report
        loaded = dts.Adapter.load(adapter, verify=False)
        name, report = loaded.name, loaded.verify(opened, source)
    except AdapterError as error:
        report = Report(str(error).splitlines())
    errors = {
        name: {"recorded": recorded, "measured": measured} for name, (recorded, measured) in report.errors.items()
    }
    result = {
        "adapter": adapter,
        "ok": report.ok,
        "problems": report.problems,
        "squared_errors": errors,
        "bit_equal": report.bits,
    }
    if report.ok:
        result["account"] = of_model(loaded, opened, loaded.on(opened, check=False)).as_dict()
    emit(result, as_json, lambda: _show(name, report, base, finetuned, result))
    if not report.ok:
        raise typer.Exit(CHECK_FAILED)


def _show(name: str, report, base: str, finetuned: str | None, result: dict):
    from dts.checkpoint.mismatch import causes

    if not report.ok:
        output.print(f"{name}: {len(report.problems)} problems", style="red")
        of_base = [line.removeprefix("base: ") for line in report.problems if line.startswith("base: ")]
        for line in [*(f"base: {cause}" for cause in causes(of_base)), *report.problems[len(of_base) :]]:
            output.print(f"  {line}", soft_wrap=True)
        return
    output.print(f"{name}: whole, and made for {base}", style="green")
    output.print(counts_text(result["account"]), soft_wrap=True)
    if finetuned is None and report.bits:
        text = f"{report.bits} tensors come out bit for bit as they were, by a digest over each."
        output.print(f"{text}  Give the fine-tune as well to compare all of them.", soft_wrap=True)
    elif finetuned is None:
        output.print("Give the fine-tune as well to measure the errors again.")
    elif report.bits and not report.errors:
        output.print(f"All {report.bits} tensors equal those of {finetuned} bit for bit.", soft_wrap=True)
    else:
        output.print(
            f"{len(report.errors)} tensors are as close to {finetuned} as recorded; all others equal it.",
            soft_wrap=True,
        )
