"""`dts diff`: what a fine-tune changed, tensor by tensor, before anything is compressed."""

import math
from typing import Annotated

import typer

from dts.cli.common import (
    Dotted,
    FinetunedRevision,
    Json,
    Only,
    Revision,
    State,
    Vocabulary,
    at,
    counts_text,
    emit,
    listing,
    of_state,
    output,
    percent,
    progress_bar,
)


def diff(
    base: Annotated[str, typer.Argument(help="Folder, file or hub id of the base model.", show_default=False)],
    finetuned: Annotated[str, typer.Argument(help="The full fine-tune to compare.", show_default=False)],
    top: Annotated[int, typer.Option(help="Tensors to list, largest change first; 0 lists all.", min=0)] = 20,
    revision: Revision = None,
    finetuned_revision: FinetunedRevision = None,
    state: State = None,
    only: Only = None,
    vocabulary: Vocabulary = None,
    as_json: Json = False,
):
    """Show what a fine-tune changed: which tensors, by how much, and what only one of the two has."""
    result = compare(at(base, revision), of_state(at(finetuned, finetuned_revision), state), only, vocabulary)
    emit(result, as_json, lambda: _show(result, top))


def compare(base: str, finetuned: str, only: str | None = None, vocabulary: str | None = None) -> dict:
    """What `dts diff` says, as plain data: ``changed`` is sorted by the norm of the change, largest first.

    only, vocabulary: as for `dts.compress`.
    """
    from dts.adapter.accounting import of_pairing
    from dts.adapter.suspicion import look
    from dts.checkpoint import open_checkpoint, pair
    from dts.checkpoint.fitted import fitted

    opened = open_checkpoint(base)
    pairing = pair(opened, fitted(opened, open_checkpoint(finetuned), only, vocabulary))
    changed: list[dict] = []
    unchanged: list[dict] = []
    only_finetuned: list[dict] = []
    tied: dict[str, str] = {}
    with progress_bar("Comparing") as progress:
        for done, p in enumerate(pairing.pairs.values()):
            progress(done, len(pairing.pairs), p.name)
            if p.tied_to:
                tied[p.name] = p.tied_to
            elif p.base_name is None:
                only_finetuned.append({"name": p.name, "shape": list(pairing.finetuned.shape(p.name))})
            else:
                row = _change(pairing, p)
                moved = row["norm"] or p.added_rows or row["bit_equal"] < row["elements"]
                (changed if moved else unchanged).append(row)
    changed.sort(key=lambda row: -(row["norm"] if math.isfinite(row["norm"]) else math.inf))
    relative = _relative(changed, changed + unchanged)
    look(pairing, relative)
    account = of_pairing(pairing, equal={row["name"] for row in unchanged})
    return {
        "base": pairing.base.source,
        "finetuned": pairing.finetuned.source,
        "changed": changed,
        "unchanged": [row["name"] for row in unchanged],
        "only_finetuned": only_finetuned,
        "only_base": pairing.base_only,
        "tied": tied,
        "relative": relative,
        "bit_equal": _bit_equal(changed + unchanged),
        "account": account.as_dict(),
    }


def _change(pairing, p) -> dict:
    """Norms of one tensor's change, and how many of its rows changed at all."""
    import torch

    from dts import sums
    from dts.codec.exact import equal_bits

    before = pairing.base.load(p.base_name)
    after = pairing.finetuned.load(p.name)[: before.shape[0] if p.added_rows else None]
    rows = (after != before).flatten(1).any(1).sum().item() if after.dim() > 1 else None
    norm = sums.squared_difference(after, before) ** 0.5
    equal = equal_bits(after, before.to(after.dtype))
    return {
        "name": p.name,
        "shape": list(pairing.finetuned.shape(p.name)),
        "norm": norm,
        "base_norm": sums.norm(torch.where(before.isfinite(), before, 0)),  # masks are infinite
        "changed_rows": rows,
        "elements": after.numel(),
        "bit_equal": equal,
        "added_rows": p.added_rows,
    }


def _relative(changed: list[dict], shared: list[dict]) -> float:
    """||finetuned - base|| / ||base|| over all tensors both have."""
    base = sum(row["base_norm"] ** 2 for row in shared)
    return (sum(row["norm"] ** 2 for row in changed) / base) ** 0.5 if base else 0.0


def _bit_equal(shared: list[dict]) -> float | None:
    """Share of the elements both have that are the same bit for bit, in the fine-tune's dtype."""
    elements = sum(row["elements"] for row in shared)
    return sum(row["bit_equal"] for row in shared) / elements if elements else None


def _show(result: dict, top: int):
    total = sum(row["norm"] ** 2 for row in result["changed"]) or 1.0
    listed = result["changed"][: top or None]
    output.print(f"{result['finetuned']}\n  against {result['base']}\n", soft_wrap=True)
    table = listing(None, "tensor", "shape", "change", "share", "bit-equal", "rows", text=("rows",))
    for row in listed:
        rows = "" if row["changed_rows"] is None else str(row["changed_rows"])
        rows += f" + {row['added_rows']} new" if row["added_rows"] else ""
        table.add_row(
            Dotted(row["name"]),
            " x ".join(map(str, row["shape"])),
            percent(row["norm"] / row["base_norm"] if row["base_norm"] else None),
            percent(row["norm"] ** 2 / total, 1),
            percent(row["bit_equal"] / row["elements"] if row["elements"] else None),
            rows,
        )
    if listed:
        output.print(table)
    if len(listed) < len(result["changed"]):
        output.print(f"… and {len(result['changed']) - len(listed)} more (--top 0 lists all)")
    output.print(
        f"\n{len(result['changed'])} tensors changed, {len(result['unchanged'])} did not; "
        f"the whole model moved by {percent(result['relative'])} of its norm; "
        f"{percent(result['bit_equal'])} of the elements are equal bit for bit\n"
        "change: of the base tensor's norm; share: of all change, squared; bit-equal: of elements, in the fine-tune's "
        "dtype; rows: that changed at all",
        soft_wrap=True,
    )
    output.print(counts_text(result["account"]), soft_wrap=True)
    for what, names in (
        ("Only in the fine-tune", [row["name"] for row in result["only_finetuned"]]),
        ("Only in the base", result["only_base"]),
        ("Tied", [f"{name} = {other}" for name, other in result["tied"].items()]),
    ):
        if names:
            output.print(f"{what}: {', '.join(names)}", soft_wrap=True)
