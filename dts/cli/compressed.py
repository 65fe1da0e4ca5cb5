"""What a person is told of adapters that were made, or would be."""

from dts.cli.common import Dotted, bytes_text, listing, output, percent
from dts.cli.inspect import summary_table

ANSWERS = (
    "squared error: of the difference, 0 is exact.  answers: how many are predicted to be the fine-tune's own, from "
    "tasks that were measured with this method and error; dts eval measures them"
)


def show(results: list[dict], tensors: bool = False):
    if len(results) == 1:
        output.print(summary_table(results[0], "Wrote" if results[0]["written"] else "Would write"))
    else:
        show_several(results)
    for row in results:
        if not row["written"]:
            _show_predicted(row, tensors)


def show_several(results: list[dict]):
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
    if predicted is None:
        output.print(f"\n{result['name']}: nothing is lost, and these are the bytes that it takes")
        return
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
            Dotted(row["name"]),
            " x ".join(map(str, row["shape"])),
            str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
            f"{row['norm']:.3g}",
            *(f"{row[key]:.3f}" for key in ("squared_error", "lower", "upper")),
        )
    output.print(table)
