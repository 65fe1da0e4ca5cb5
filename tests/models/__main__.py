"""Run rows of the table and write the page: ``python -m tests.models [family ...]``, all of them without a name."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.models import found  # noqa: E402
from tests.models.check import check  # noqa: E402
from tests.models.page import PAGE, page  # noqa: E402
from tests.models.table import ROWS  # noqa: E402


def main(names: list[str]) -> int:
    """Exit code 1 if a row failed that is not known to; the page is written from those that did not."""
    unknown = set(names) - {row.name for row in ROWS}
    if unknown:
        print(f"no such row: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    kept = found.read() if found.FILE.exists() else {}
    rows, failed = {row.name: kept[row.name] for row in ROWS if row.name in kept}, []
    for row in ROWS:
        if names and row.name not in names or row.fails:
            continue
        if row.library not in found.here():
            print(row.name, f"left as it is: {row.library} is not installed", flush=True)
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                rows[row.name] = found.of(row, check(row, Path(folder)))
            print(row.name, "ok", flush=True)
        except Exception:
            failed.append(row.name)
            traceback.print_exc()
            print(row.name, "FAILED", flush=True)
        found.write(rows)
    missing = [row.name for row in ROWS if not row.fails and row.name not in rows]
    if missing:
        print(f"not run yet, and so no page: {', '.join(missing)}", file=sys.stderr)
    else:
        PAGE.write_text(page(ROWS, rows, found.written_with()), "utf-8")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
