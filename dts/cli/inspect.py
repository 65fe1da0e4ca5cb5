"""`dts inspect`: what is in an adapter."""

from typing import Annotated

import typer
from rich.table import Table

from dts.cli.common import Dotted, Json, bytes_text, counts_text, emit, listing, output, pairs, percent


def inspect(
    adapter: Annotated[str, typer.Argument(help="Folder of the adapter.", show_default=False)],
    tensors: Annotated[bool, typer.Option("--tensors", "-t", help="List every tensor, in the file's order.")] = False,
    as_json: Json = False,
):
    """Show what an adapter holds: its task, its base, its bytes, and its tensors with ranks and errors."""
    import dts
    from dts.adapter.purposes import purposes

    loaded = dts.Adapter.load(adapter)
    result = summary(loaded) | {
        "format_version": loaded.config["format_version"],
        "bytes_for": purposes(loaded),
        "tensors": tensors_of(loaded),
        "dropped": loaded.config["dropped"],
    }
    if as_json:
        result["config"] = loaded.config
    emit(result, as_json, lambda: _show(result, tensors))


def summary(adapter) -> dict:
    """What every verb that ends in an adapter says of it."""
    from dts.adapter.expected import expected_agreement

    error, created = adapter.config.get("squared_error"), adapter.config.get("created") or {}
    mixture = str(created.get("command")).startswith("mix ")  # which has no fine-tune to answer as
    return {
        "name": adapter.name,
        "description": adapter.description,
        "class_names": adapter.class_names,
        "folder": str(adapter.folder) if adapter.folder else None,
        "kind": adapter.kind,
        "method": adapter.method,
        "bytes": adapter.nbytes,
        "amr": adapter.amr,
        "squared_error": error,
        "predicted_agreement": None if mixture else expected_agreement(adapter.method, error),
        "dtype": adapter.config["finetuned"]["dtype"],
        "base": adapter.config["base"],
        "created": adapter.config.get("created"),
    }


def account_of(adapter) -> dict:
    """What became of every tensor of the models, of an adapter that was just made."""
    return {} if adapter.account is None else {"account": adapter.account.as_dict()}


def tensors_of(adapter) -> list[dict]:
    """One row a tensor; ``squared_error`` is ||delta - delta_hat||^2 / ||delta||^2."""
    stored = adapter.config["tensors"]
    return [
        {
            "name": entry.name,
            "kind": "task only" if entry.task_only else entry.kind,
            "shape": list(entry.shape),
            "rank": entry.rank,
            "bytes": stored.get(entry.name, {}).get("bytes"),
            "norm": entry.norm,
            "squared_error": entry.squared_error,
            "tied_to": entry.tied_to,
        }
        for entry in adapter.entries.values()
    ]


def summary_table(result: dict, title: str | None = None):
    """The two columns a person reads of `summary`."""
    from dts.adapter.card import note
    from dts.adapter.expected import in_words

    base, names, error = result["base"], result["class_names"], result["squared_error"]
    rows = {
        "task": result["name"] + (f": {result['description']}" if result["description"] else ""),
        "classes": f"{len(names)}: {', '.join(names)}" if names else "not named",
        "kind, method": f"{result['kind']}, {result['method']}",
        "bytes": f"{result['bytes']:,} ({bytes_text(result['bytes'])})",
        "of the base": rate_text(result),
        "squared error": error and error_text(error) + note(result["method"]),
        "answers": result["predicted_agreement"] and in_words(result["method"], error),
        "base": f"{base.get('name')}, {base['parameters']:,} parameters, {base.get('dtype')}"
        + ("" if result["dtype"] == base.get("dtype") else f"; the fine-tune is {result['dtype']}"),
        "fingerprint": base.get("fingerprint"),
        "folder": result["folder"],
        "tensors": counts_text(result["account"]) if "account" in result else None,
    }
    return pairs(title, {name: value for name, value in rows.items() if value})


def error_text(error: float) -> str:
    """ "0.140 of the difference, so 86 % of the change, in squares, is kept"; an error above 1 keeps no share."""
    kept = f", so {percent(1 - error, 0)} of the change, in squares, is kept" if error < 1 else ""
    return f"{error:.3f} of the difference{kept}"


def rate_text(result: dict) -> str:
    """AMR, and the rate against the stored dtype beside it."""
    text = f"{percent(result['amr'])} in fp32 (AMR)"
    dtype = str(result["base"].get("dtype", ""))
    if dtype in ("float16", "bfloat16"):
        text += f", {percent(2 * result['amr'])} in {dtype}, as stored"
    return text


def _show(result: dict, all_tensors: bool):
    output.print(summary_table(result))
    output.print()
    if not all_tensors:
        output.print(_by_kind(result["tensors"]))
        output.print(_by_purpose(result["bytes_for"]))
        if result["dropped"]:
            output.print(f"{len(result['dropped'])} changed tensors are left at the base: no bytes for them")
        output.print("Tensors that are not listed are the base's")
        output.print("--tensors lists every tensor")
        return
    table = listing(None, "tensor", "kind", "shape", "rank", "bytes", "norm", "error²", text=("kind",))
    for row in result["tensors"]:
        table.add_row(
            Dotted(row["name"]),
            row["tied_to"] or row["kind"],
            " x ".join(map(str, row["shape"])),
            str(row["rank"] or ""),
            f"{row['bytes']:,}" if row["bytes"] is not None else "",
            f"{row['norm']:.3g}" if row["norm"] else "",
            f"{row['squared_error']:.3f}" if _has_error(row) else "",
        )
    output.print(table)


def _has_error(row: dict) -> bool:
    """Is it of matrices, which lose something, and known what: a sample alone has no rank."""
    return bool(row["rank"] or row["kind"] in ("factors", "experts")) and row["squared_error"] is not None


def _by_purpose(found: dict[str, int]) -> Table:
    table = listing(None, "bytes for", "bytes", "share")
    for purpose, count in found.items():
        table.add_row(purpose, f"{count:,}", percent(count / sum(found.values())))
    return table


def _by_kind(tensors: list[dict]) -> Table:
    table = listing(None, "stored as", "tensors", "bytes", "ranks", "squared error")
    for kind in dict.fromkeys(row["kind"] for row in tensors):
        rows = [row for row in tensors if row["kind"] == kind]
        ranks = [row["rank"] for row in rows if row["rank"]]
        known = [row for row in rows if _has_error(row)]
        energy = sum(row["norm"] ** 2 for row in known)
        error = sum(row["squared_error"] * row["norm"] ** 2 for row in known) / energy if energy else None
        table.add_row(
            kind,
            str(len(rows)),
            f"{sum(row['bytes'] or 0 for row in rows):,}",
            f"{min(ranks)} to {max(ranks)}" if ranks else "",
            f"{error:.3f}" if error is not None else "",
        )
    return table
