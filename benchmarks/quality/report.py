"""One static page, `index.html`, over every suite measured: plots as PNG and SVG, tables, and the figures as JSON.

    python -m benchmarks.quality.report --out out/                      from the committed results
    python -m benchmarks.quality.report --results A B ... --out out/    from files or folders of rows, .json or .jsonl
    ... --keep benchmarks/results/quality                               and store the rows, compactly, to be committed

Nothing is measured.  Beside the page: `ratios.png`, `headline.png`, <suite>.json with all rows, `figures.json` with
what is shown.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from benchmarks.quality import page
from benchmarks.quality.markup import slug
from benchmarks.quality.rows import load, save
from dts.files import write_text

COMMITTED = Path(__file__).resolve().parents[1] / "results" / "quality"
THEORY = "theory.json"


def write(out: Path, suite: str, cells: list[dict], rows: list[dict]) -> Path:
    """Stores the rows of one suite in ``out`` and makes the page over every suite there.  Returns the page's path.

    cells: not used, the page takes its own means."""
    out.mkdir(parents=True, exist_ok=True)
    save(rows, out / f"{slug(suite)}.json")
    return build(out, load([out]), _theory([out, COMMITTED]))


def build(out: Path, suites: dict[str, list[dict]], theory: dict | None) -> Path:
    """The page and all that belongs to it, in ``out``.  Returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    for suite, rows in suites.items():
        save(rows, out / f"{slug(suite)}.json")
    text, figures = page.build(out, suites, theory)
    write_text(out / "figures.json", json.dumps(figures, indent=1) + "\n")
    write_text(out / "index.html", text)
    return out / "index.html"


def _theory(places: list[Path]) -> dict | None:
    """The first file of `benchmarks.quality.theory` among files and folders."""
    files = [place / THEORY if place.is_dir() else place for place in places]
    found = next((file for file in files if file.name == THEORY and file.is_file()), None)
    return json.loads(found.read_text()) if found else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", nargs="+", type=Path, default=[COMMITTED], help="files or folders of rows")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page")
    parser.add_argument("--keep", type=Path, help="folder that the rows go to as well, one compact file a suite")
    options = parser.parse_args(arguments)
    suites, theory = load(options.results), _theory([*options.results, COMMITTED])
    if not suites and theory is None:
        print(
            f"no rows in {', '.join(map(str, options.results))}: run a suite first, as in "
            "python -m benchmarks.quality.text --quick",
            file=sys.stderr,
        )
        return 2
    print(f"report: {build(options.out, suites, theory)}")
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        for suite, rows in suites.items():
            save(rows, options.keep / f"{slug(suite)}.json")
        for picture in ("ratios.png", "headline.png"):
            if (options.out / picture).is_file():
                shutil.copyfile(options.out / picture, options.keep / picture)
        print(f"kept: {options.keep}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
