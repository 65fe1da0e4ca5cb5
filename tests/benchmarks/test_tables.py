"""The tables of methods of docs/quality.md are those of the committed rows."""

import pytest

from benchmarks.quality import groups, report, rows, tables, verdicts
from benchmarks.quality.groups import Group
from benchmarks.quality.tables import Line, Table
from tests.benchmarks.test_report import row
from tests.docs.pages import ROOT

SIZES = (0.001, 0.01)
PEER = {"sketch": (0.1, 0.1), "drop 4 bit": (0.2, 0.02)}


@pytest.fixture(scope="module")
def committed():
    return rows.load([report.COMMITTED])


@pytest.mark.parametrize("which", range(len(tables.TABLES) + 1))
def test_the_page_has_what_the_rows_give(which, committed):
    assert list(tables.tables(committed))[which] in (ROOT / "docs" / "quality.md").read_text("utf-8")


def test_the_page_has_the_targets_that_the_rows_meet(committed):
    assert verdicts.table(committed) in (ROOT / "docs" / "quality.md").read_text("utf-8")


def test_a_mean_over_fewer_tasks_is_left_out():
    measured = [row("sketch", size, 0.01 / size / 1000, task) for size in SIZES for task in ("one", "two")]
    shown = tables.markdown(Table("KL", (Line("text", "sketch"),), SIZES), {"text": measured[:-1]})
    assert shown.splitlines() == ["| KL | 0.1 % | 1 % |", "| --- | --- | --- |", "| **sketch** | .0100 |  |"]


def test_a_line_can_be_of_some_tasks_seeds_or_processors():
    measured = [row("sketch", 0.01, kl, task, seed) for kl, task, seed in ((1, "one", 0), (2, "two", 0), (4, "one", 1))]
    measured.append(row("sketch", 0.01, 8, processor="another"))

    def mean(**which) -> str:
        return tables.markdown(Table("", (Line("text", "sketch", **which),), (0.01,)), {"text": measured}).split("| ")[
            -1
        ]

    assert mean(processor="") == "1.50 |" and mean(processor="another") == "8.00 |"
    assert mean(tasks=("two",)) == "2.00 |" and mean(seeds=(1,)) == "4.00 |"
    assert mean(tasks=("one",), processor="", seeds=(0, 1)) == "2.50 ± 2.1213 |"


def test_how_often_a_peer_is_closer_is_counted_at_equal_sizes():
    measured = [row(method, size, kl) for method, kls in PEER.items() for size, kl in zip(SIZES, kls)]
    assert tables.beaten(measured, "sketch") == "1 of 2; at most 5.0 times: one, 1 %, drop + 4 bit"
    assert tables.beaten([*measured[:3], row("bitdelta", None, 1e-9)], "sketch") == "0 of 1"


@pytest.mark.parametrize(
    "value, text",
    [
        (1.094, "1.09"),
        (0.1, ".100"),
        (0.09996, ".100"),
        (0.0268, ".0268"),
        (0.000026, ".00003"),
        (4.1e-6, "4e-6"),
        (0.0, ".0000"),
    ],
)
def test_a_kl_is_written_in_three_digits(value, text):
    assert tables.kl_text(value) == text


def test_what_was_trained_again_is_a_group_of_its_own():
    measured = [row(method, 0.01, 0.1, task, seed) for method in PEER for task in ("one", "two") for seed in (0, 1, 2)]
    again = {"processor": groups.XEON}
    measured += [row(method, 0.01, 0.1, task, 1, **again) for method in (*PEER, "svd 4 bit") for task in ("one", "two")]
    measured.append(row("svd 4 bit", 0.01, 0.2, "one", **again))
    found = groups.groups(dict.fromkeys(groups.SUITES, []) | {"text": measured})
    assert [(group.which, len(group.rows)) for group in found] == [
        ("2, seed 0", 4),
        ("1, seed 0, Xeon", 1),
        ("2, seed 1, Xeon", 6),
        ("2, seeds 1 and 2", 8),
    ]
    some = [one for one in measured if (one["task"], one["seed"]) != ("two", 2) and "processor" not in one]
    found = groups.groups(dict.fromkeys(groups.SUITES, []) | {"text": some})
    assert [group.which for group in found] == ["2, seed 0", "2, seeds 1 and 2 (3 fine-tunes)"]


def test_a_target_is_met_or_not():
    def marks(suite: str, kl: float, lost: float = 0.0) -> list[str]:
        ours, sizes = groups.SUITES[suite][1], (0.001, 0.005)
        measured = [row(method, size, kl if method == ours else 1.0) for method in (ours, "dare") for size in sizes]
        return [cell for cell in verdicts.verdicts(Group(suite, [r | {"adr": lost} for r in measured])) if cell]

    assert marks("text", 0.5, 0.002) == ["✔ .50", "✔ .50", "✔ .20", "✔ 0 of 1"]
    assert marks("text all", 1.01, 0.0021) == ["✘ 1.01", "✘ 1.01", "✘ .21", "✘ 1 of 1"]
    assert marks("images", 0.6) == ["✔ .60", "✘ .60"]
