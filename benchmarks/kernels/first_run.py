"""Tables of the first run on a GPU: `python -m benchmarks.kernels.first_run`.

The rows and how they were measured: benchmarks/results/nvidia-h100-80gb-hbm3/.
"""

import json
from pathlib import Path

ROWS = Path(__file__).parents[1] / "results" / "nvidia-h100-80gb-hbm3" / "first-run.jsonl"
LAYER = ("packed", "sketch", "lora equal rank", "lora equal bytes", "dense models")
MODEL = ("dts {} graph b{} ratio", "dts {} eager b{} ratio")


def rows(what: str) -> list[dict]:
    """The rows of one kind, as they were printed."""
    return [row for row in map(json.loads, ROWS.read_text("utf-8").splitlines()) if row["what"] == what]


def value(row: dict, key: str) -> str:
    """A ratio with two decimals; of rows of different tasks LoRA is a batched product, with a name of its own."""
    found = row.get(key, row.get(f"{key} bmm", "–"))
    return found if isinstance(found, str) else f"{found:.2f}"


def layers() -> list[str]:
    """A Markdown table, times the base alone."""
    lines = ["| layer, bf16 | " + " | ".join(LAYER) + " |", "| --- " * (len(LAYER) + 1) + "|"]
    for row in rows("layer"):
        work = "one task" if row["work"] == "one" else "as many tasks"
        what = "1 row" if row["rows"] == 1 else f"{row['rows']} rows of {work}"
        lines.append(
            f"| {row['m']} x {row['n']}, r = {row['r']}, {what} | "
            + " | ".join(value(row, key) for key in LAYER)
            + " |"
        )
    return lines


def models() -> list[str]:
    """A Markdown table, times the base alone."""
    lines = [
        "| Llama, r = .05, 8 tasks | captured, one task | captured, mixed | eager, one task | eager, mixed |",
        "| --- " * 5 + "|",
    ]
    for row in rows("whole"):
        for batch in (1, 8, 32):
            cells = [value(row, key.format(work, batch)) for key in MODEL for work in ("one", "mixed")]
            lines.append(f"| {row['params'] / 1e9:.1f} B, {batch} row{'s' * (batch > 1)} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    print("\n".join([*layers(), "", *models()]))


if __name__ == "__main__":
    main()
