"""The tables of the first run on a GPU are made of its rows."""

from benchmarks.kernels import first_run


def test_every_row_is_in_the_tables(capsys):
    first_run.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(first_run.rows("layer")) + 1 + 2 + 3 * len(first_run.rows("whole"))
    one = first_run.rows("layer")[0]
    assert f"4096 x 4096, r = {one['r']}, 1 row | {one['packed']:.2f} | {one['sketch']:.2f}" in "\n".join(lines)


def test_the_page_says_what_the_rows_say():
    page = (first_run.ROWS.parents[3] / "docs" / "performance.md").read_text("utf-8")
    found = {(row["m"], row["r"], row["rows"], row["work"]): row["packed"] for row in first_run.rows("layer")}
    for r, rows, work in ((0.05, 1, "one"), (0.3, 1, "one"), (0.3, 16, "distinct"), (0.3, 64, "distinct")):
        assert f"| {found[4096, r, rows, work]:.2f} |" in page
