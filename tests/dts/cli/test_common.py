import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dts.cli.common import (
    Dotted,
    Terminal,
    bytes_text,
    list_of,
    listing,
    parse_fraction,
    parse_size,
    percent,
)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("1%", {"budget": 0.01}),
        (" 0.5 % ", {"budget": 0.005}),
        ("0.02", {"budget": 0.02}),
        (".5%", {"budget": 0.005}),
        ("5MB", {"nbytes": 5_000_000}),
        ("5m", {"nbytes": 5_000_000}),
        ("2MiB", {"nbytes": 2 * 1024**2}),
        ("500 KB", {"nbytes": 500_000}),
        ("1.5GB", {"nbytes": 1_500_000_000}),
        ("2TB", {"nbytes": 2 * 10**12}),
        ("1024B", {"nbytes": 1024}),
    ],
)
def test_sizes_as_people_write_them(text, parsed):
    assert parse_size(text) == pytest.approx(parsed)


@pytest.mark.parametrize("text", ["5", "", "1 percent", "-1%", "1%%", "5PB", "MB"])
def test_a_size_that_could_mean_anything_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="write"):
        parse_size(text)


@pytest.mark.parametrize(("text", "shares"), [("5", True), ("100", True), ("40000", False)])
def test_a_share_is_offered_only_for_what_can_be_one(text, shares):
    with pytest.raises(ValueError, match="no unit") as error:
        parse_size(text)
    assert ("% of the base" in str(error.value)) == shares and f"{text}KB" in str(error.value)


def test_fractions():
    assert parse_fraction("0.3") == parse_fraction("30%") == pytest.approx(0.3)
    for wrong in ("0", "130%", "a", "-1"):
        with pytest.raises(ValueError, match="fraction|between"):
            parse_fraction(wrong)


def test_bytes_and_rates_read_well():
    assert [bytes_text(n) for n in (0, 999, 1_000, 12_345, 1_234_567, 90_864_192, 5 * 10**12)] == [
        "0 B",
        "999 B",
        "1.00 KB",
        "12.3 KB",
        "1.23 MB",
        "90.9 MB",
        "5.00 TB",
    ]
    assert percent(0.01234) == "1.23 %" and percent(None) == "–"


def test_an_editors_mark_is_of_no_name_and_other_bytes_are_named(tmp_path):
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfsad\r\nglad\r\n")
    assert list_of(f"@{tmp_path / 'marked.txt'}") == ["sad", "glad"]
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    with pytest.raises(ValueError, match="latin.txt is not UTF-8"):
        list_of(f"@{tmp_path / 'latin.txt'}")


def test_lists_from_text_and_files(tmp_path):
    (tmp_path / "names").write_text("polka dots\nstripes\n\n")
    assert list_of("a, b c,,d") == ["a", "b c", "d"]
    assert list_of(f"@{tmp_path / 'names'}") == ["polka dots", "stripes"]
    assert list_of(None) is None
    for nothing in (",", " , ,", "@/dev/null"):
        with pytest.raises(ValueError, match="names nothing"):
            list_of(nothing)
    with pytest.raises(ValueError, match="^a, c is named more than once"):
        list_of("c,a,b,a,c")


def shown(width: int | None, *cells: str) -> list[str]:
    """Lines of a table with one row, on a terminal so many columns wide, or in a file."""
    text = io.StringIO()
    console = Terminal(file=text, width=width, force_terminal=width is not None, color_system=None)
    console.wide = True
    table = listing(None, "tensor", "shape", "change")
    table.add_row(Dotted(cells[0]), *cells[1:])
    console.print(table)
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 60, 44])
def test_a_long_name_is_broken_behind_its_dots_alone(width):
    name = "model.encoder.layers.11.attention.self.query_projection.weight.with.a.long.end"
    lines = shown(width, name, "384 x 384", "12.34 %")
    first = [line[:-20] if "x" in line and "%" in line else line for line in lines[1:]]
    assert "384 x 384" in lines[1] and "12.34 %" in lines[1] and all(len(line) <= width for line in lines)
    pieces = [line.strip() for line in first]
    assert "".join(pieces) == name and all(piece.endswith(".") for piece in pieces[:-1])


def test_in_a_file_nothing_is_broken(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "a.very.long.name" * 20
    assert any(name in line and "1 %" in line for line in shown(None, name, "3 x 3", "1 %"))


def test_results_in_a_pipe_are_wide_and_errors_are_not(models, tmp_path):
    """A frame of an error in a log stays readable."""
    root = Path(__file__).resolve().parents[3]
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    run = lambda *words: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "dts", *words], capture_output=True, text=True, cwd=root, env=environment, timeout=120
    )
    wrong = run("list", str(tmp_path / "none"))
    assert wrong.returncode == 2 and max(map(len, wrong.stderr.splitlines())) <= 80
    shown = run("diff", str(models / "base"), str(models / "one"))
    assert shown.returncode == 0 and any(len(line.split()) >= 6 for line in shown.stdout.splitlines())


def test_a_word_that_a_shell_left_empty_is_no_place_and_no_name(dts, models, tmp_path):
    """As a path it would be the folder that one is in."""
    words = ("compress", models / "base", models / "one")
    for given in (("-o", ""), ("-o", "a", "--name", ""), ("--out= ",), ("-o", "a", "--description", "\t")):
        done = dts(*words, *given)
        assert done.exit_code == 2 and "nothing is said there" in done.stderr and not list(tmp_path.iterdir())
    assert "an argument, ''" in dts("inspect", "").stderr
    (tmp_path / "recipe.yaml").write_text(
        f"base: {models}/base\nout: ''\nfinetunes: [{{path: {models}/one, name: ' ', class_names: [a, '']}}]"
    )
    said = dts("compress", "--config", "recipe.yaml").stderr
    for place in ("out: nothing is said", "finetunes, item 1, name: nothing", "item 1, class_names, item 2: nothing"):
        assert place in said, said


def test_a_size_that_a_shell_left_empty_is_not_the_default(dts, models):
    words = ("compress", models / "base", models / "one", "-o", "a")
    for option in ("--budget", "--rank-fraction", "--target-error"):
        done = dts(*words, f"{option}=")
        assert done.exit_code == 2 and f"{option}: nothing is said there" in done.stderr, option
