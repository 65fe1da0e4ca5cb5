"""The report over made-up rows whose figures are known."""

import json
import re

import pytest

from benchmarks.quality import ratios, report, rows, targets
from benchmarks.quality.style import spread, style

SIZES = (0.001, 0.01, 0.04)


def row(method, size, kl, task="one", seed=0, share=None, **more):
    return {
        "suite": "text",
        "task": task,
        "seed": seed,
        "draw": 0,
        "method": method,
        "size": size,
        "share": share or size,
        "published_share": share or size,
        "shared": 0.0,
        "accuracy": 0.9 - kl,
        "finetuned_accuracy": 0.9,
        "adr": kl / 0.9,
        "agreement": 1 - kl,
        "kl": kl,
        "squared_error": 0.1,
        "seconds": 1.0,
    } | more


@pytest.fixture
def measured():
    """Power laws: ours .001 at 1 %, a second of ours 1.5 times, the paper 4 times, UltraDelta 2.2; and BitDelta."""
    out = []
    for task, factor in (("one", 1), ("two", 3)):
        for method, scale in (("residual", 1), ("dts whole", 1.5), ("dts paper", 4), ("ultradelta", 2.2)):
            out += [row(method, size, scale * factor * 1e-5 / size / 2, task) for size in SIZES]
        out.append(row("bitdelta", None, 0.1, task, share=0.031))
    return out


def test_compact_files_give_the_rows_back(measured, tmp_path):
    rows.save(measured, tmp_path / "text.json")
    back = rows.load([tmp_path])["text"]
    assert len(back) == len(measured)
    for one, other in zip(measured, back):
        assert other.keys() == one.keys()
        for key, value in other.items():
            assert value == (pytest.approx(one[key], rel=1e-4) if isinstance(value, float) else one[key])
    assert (tmp_path / "text.json").stat().st_size < 150 * len(measured)


def test_of_lines_of_json_the_last_fine_tune_and_the_most_samples_count(measured, tmp_path):
    older = measured[0] | {"kl": 9.0}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (older, *measured)))
    found = [r["kl"] for r in rows.load([tmp_path / "rows.jsonl"])["text"]]
    assert found == pytest.approx([r["kl"] for r in measured], rel=1e-4)
    key = lambda identity, samples: {"key": json.dumps(["text", "m", 0.1, 0, identity, samples, [], False])}  # noqa: E731
    runs = [("old", 900), ("new", 1000), ("new", 300)]  # then a quick run
    lines = [row("residual", 0.01, kl) | key(*run) for kl, run in zip((0.1, 0.2, 0.3), runs)]
    lines.append(row("added by hand", 0.01, 0.4))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = rows.load([tmp_path / "rows.jsonl"])["text"]
    assert [(r["kl"], r.get("samples")) for r in found] == [(0.2, 1000), (0.4, None)]
    with pytest.raises(FileNotFoundError, match="nothing"):
        rows.load([tmp_path / "nothing"])


def test_cells_are_means_over_tasks_and_the_worst(measured):
    cells = [cell for cell in rows.cells(measured) if cell["method"] == "residual"]
    assert [cell["kl"] for cell in cells] == pytest.approx([1e-2, 1e-3, 2.5e-4])
    assert cells[1]["worst_kl"] == pytest.approx(1.5e-3) and cells[1]["fine_tunes"] == cells[1]["runs"] == 2


def test_what_was_measured_on_fewer_fine_tunes_is_left_out(measured):
    more = [row("residual", 0.006, 9.0), row("tvq 2 bit", None, 9.0, "two"), row("residual", 0.01, 9.0, "three")]
    kept, left = rows.comparable(measured + more)
    assert kept == measured and left == ["residual (0.6 %)", "tvq 2 bit (its own size)"]


def test_more_seeds_of_some_methods_leave_no_method_out(measured):
    again = [row | {"seed": row["seed"] + 10} for row in measured if row["method"] == measured[0]["method"]]
    kept, left = rows.comparable(measured + again)
    assert kept == measured and not left


def test_a_fine_tune_of_another_processor_is_another_one(measured, tmp_path):
    again = [row("residual", 0.01, 9.0, task, processor="another") for task in ("one", "two")]
    rows.save(measured + again, tmp_path / "text.json")
    text = (tmp_path / "text.json").read_text()
    found = rows.load([tmp_path])["text"]
    assert (
        len(found) == len(measured + again) and sum("processor" in one for one in found) == text.count('"another"') == 2
    )
    assert text.count("null") == 2  # BitDelta's sizes: rows that do not name a processor stay as they were
    kept, left = rows.comparable(found)
    assert len(kept) == len(measured) and not left


def test_a_loss_is_taken_where_every_row_has_one():
    one, other = row("residual", 0.01, 0.1, loss=2.0), row("residual", 0.01, 0.1, "two", loss=4.0)
    assert rows.cells([one, other])[0]["loss"] == 3 and "loss" not in rows.cells([one, row("residual", 0.01, 0.1)])[0]


def test_between_sizes_lines_are_straight_in_logarithms():
    points = [(0.001, 1e-2), (0.01, 1e-3)]
    assert rows.at(points, 0.01**0.5 * 0.001**0.5) == pytest.approx(10**-2.5)
    assert rows.at(points, 0.0005) is None and rows.at(points, 0.04) == 1e-3
    assert rows.share_for(points, 10**-2.5) == (pytest.approx(10**-2.5), False)
    assert rows.share_for(points, 0.1) == (0.001, True) and rows.share_for(points, 1e-4) is None


def test_targets_are_computed_from_the_rows(measured):
    cells = rows.cells(measured)
    assert targets.best_peer(cells, 0.01) == ("ultradelta", pytest.approx(2.2e-3))
    checks = targets.checks(cells)
    drop, paper, every, ultradelta = (c for c in checks if c.method == "residual")
    assert drop.met is False and drop.figures.endswith("%")  # .002 / .9 at 0.5 %
    assert paper.met and "1 %: 0.25" in paper.figures and every.met and "1 %: 0.45 (UltraDelta)" in every.figures
    assert ultradelta.met is True and "its 4 %: 0.45" in ultradelta.figures
    drop, paper, every, ultradelta = (c for c in checks if c.method == "dts whole")
    assert paper.met and not every.met and not ultradelta.met
    nothing = targets.checks(rows.cells([row("residual", 0.02, 0.1)]))
    assert [check.met for check in nothing] == [None] * 4


def test_our_methods_come_in_one_order_whatever_was_measured_first():
    cells = [{"method": name} for name in ("residual uniform", "dare", "another", "residual frobenius", "residual")]
    assert targets.ours(cells) == ["residual", "another", "residual frobenius", "residual uniform"]


def test_a_method_has_its_colour_where_another_of_ours_was_not_measured():
    everywhere, alone = ([{"method": name} for name in names] for names in (("residual", "sketch"), ("sketch",)))
    looks = [style("sketch", targets.palette(cells)) for cells in (everywhere, alone)]
    assert looks[0] == looks[1] != style("residual", targets.palette(alone))
    assert targets.palette([{"method": "another"}])[-1] == "another"


def test_ratios_to_the_best_peer(measured):
    table = [r for r in targets.relative(rows.cells(measured)) if r["method"] == "residual"]
    assert [r["ratio"] for r in table] == pytest.approx([1 / 2.2] * 3) and table[0]["best_peer"] == "ultradelta"
    assert [r["paper_ratio"] for r in table] == pytest.approx([0.25] * 3)


def test_every_fine_tune_has_a_ratio_to_the_peer_that_is_best_in_the_mean(measured):
    """`two` has UltraDelta at twice the KL; DARE is better on `one` alone."""
    for one in measured:
        if one["method"] == "ultradelta" and one["task"] == "two":
            one["kl"] *= 2
    measured += [row("dare", size, 1.1 * 1e-5 / size / 2) for size in SIZES]
    measured += [row("dare", size, 99 * 1e-5 / size / 2, "two") for size in SIZES]
    found = {(r.method, r.share): r for r in ratios.ratios(measured, rows.cells(measured))}
    assert {method for method, _ in found} == {"residual", "dts whole"} and {share for _, share in found} == set(SIZES)
    for share in SIZES:
        mine = found["residual", share]
        # residual has 1 and 3, UltraDelta 2.2 and 13.2, the paper 4 and 12
        assert mine.peer == "ultradelta" and mine.ratio == pytest.approx(4 / 15.4)
        assert mine.dots == {("one", 0): pytest.approx(1 / 2.2), ("two", 0): pytest.approx(3 / 13.2)}
    shown = ratios.as_json(list(found.values()))
    assert json.loads(json.dumps(shown))[0]["dots"][0] == {"task": "one", "seed": 0, "ratio": pytest.approx(1 / 2.2)}


def test_ratios_are_of_seeds_apart_and_draws_together_and_of_sizes_that_ours_has():
    given = [row("residual", size, 1.0, seed=seed, draw=d) for size in (0.002, 0.01) for seed in (0, 1) for d in (0, 1)]
    for one in given:
        one["kl"] *= (1 + one["seed"]) * (1 + 2 * one["draw"])  # means over draws: 2 and 4
    given += [row("residual frobenius", 0.03, 1.0, seed=seed) for seed in (0, 1)]
    given += [row("dare", size, 8.0, seed=seed) for size in (0.001, 0.01, 0.04) for seed in (0, 1)]
    found = ratios.ratios(given, rows.cells(given))
    assert [(r.method, r.share, r.peer) for r in found] == [("residual", 0.002, "dare"), ("residual", 0.01, "dare")]
    for one in found:
        assert one.ratio == pytest.approx(3 / 8)
        assert one.dots == {("one", 0): pytest.approx(2 / 8), ("one", 1): pytest.approx(4 / 8)}
    peers_alone = [r for r in given if r["method"] == "dare"]
    assert ratios.ratios(peers_alone, rows.cells(peers_alone)) == []


@pytest.mark.parametrize("suites", [1, 4])
def test_the_main_figure_has_a_panel_a_suite(measured, tmp_path, suites):
    found = ratios.ratios(measured, rows.cells(measured))
    drawn = ratios.draw({f"suite {i}": found for i in range(suites)} | {"nothing": []}, tmp_path / "ratios")
    text = drawn.read_text()
    assert all(f"<!-- suite {i}: 2 fine-tunes -->" in text for i in range(suites)) and "nothing" not in text
    assert text.count("<!-- UltraDelta -->") == 3 * suites  # above each size
    assert ratios.draw({"nothing": []}, tmp_path / "none") is None


def test_committed_pictures_are_small():
    pictures = list(report.COMMITTED.glob("*.png"))
    assert {"ratios.png", "headline.png"} <= {picture.name for picture in pictures}
    assert all(picture.stat().st_size <= 100_000 for picture in pictures)


def test_what_is_committed_is_rows_of_suites_alone():
    found = rows.load([report.COMMITTED])
    assert {"text", "text all", "images", "language"} <= set(found)
    assert all({"method", "size", "task", "seed", "kl"} <= set(row) for own in found.values() for row in own)


def test_a_suite_of_two_words_has_anchors_and_files_without_blanks(measured, tmp_path):
    both = report.write(tmp_path, "text all", [], [r | {"suite": "text all"} for r in measured]).read_text()
    assert 'href="#text-all"' in both and '<h2 id="text-all">' in both and "Text all</h2>" in both
    names = re.findall(r'(?:src|href|id)="([^"]+)"', both)
    assert names and not any(" " in name for name in names) and (tmp_path / "text-all-kl.svg").is_file()
    assert list(json.loads((tmp_path / "figures.json").read_text()))[0] == "text all"


@pytest.mark.slow
def test_one_page_over_all_suites_with_every_file_it_names(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "COMMITTED", tmp_path)  # the theory there is drawn above, and takes longest
    out = tmp_path / "out"
    out.mkdir()
    rows.save(measured, out / "text.json")  # of a run before
    language = [r | {"suite": "language", "loss": 2 + r["kl"], "finetuned_loss": 2.0} for r in measured]
    text = report.write(out, "language", [], language).read_text()
    assert text.count("<h2 id=") >= 3 and 'id="text"' in text and 'src="language-loss.svg"' in text
    assert "<script" not in text and "✔ met" in text and "✘ not met" in text and 'src="text-loss.svg"' not in text
    for name in re.findall(r'(?:src|href)="([^"#]+)"', text):
        assert (out / name).stat().st_size > 100, name
    for picture in ("ratios.png", "headline.png"):
        assert (out / picture).stat().st_size <= 100_000
    figures = json.loads((out / "figures.json").read_text())["text"]
    assert figures["checks"][0]["method"] == figures["ratios"][0]["method"] == "residual"
    assert text.index('src="ratios.svg"') < text.index('src="headline.svg"')  # the main figure first
    again = report.main(["--results", str(out), "--out", str(tmp_path / "again"), "--keep", str(tmp_path / "kept")])
    assert again == 0 and (tmp_path / "again" / "index.html").read_text() == text
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        "text.json",
        "language.json",
        "ratios.png",
        "headline.png",
    }


def test_theory_is_shown_with_predicted_and_measured(measured, tmp_path):
    names = ["bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.1.output.dense.weight", "pooler.w"]
    tensors = [[name, [64, 64], 8, 1.0, 0.2, 0.1, 0.3, 0.25] for name in names]
    theory = {
        "compared": [
            {
                "task": "trec",
                "method": "residual",
                "budget": 0.01,
                "bytes": 9,
                "predicted": 0.2,
                "lower": 0.1,
                "upper": 0.3,
                "measured": 0.25,
                "tensors": tensors,
            }
        ],
        "spectra": [
            {
                "task": "trec",
                "name": name,
                "shape": [64, 64],
                "ranks": [1, 8, 32],
                "measured": {"residual": [0.9, 0.4, 0.1], "paper": [0.9, 0.5, 0.4]},
                "singular_values": [1 / i for i in range(1, 65)],
            }
            for name in names[:2]
        ],
        "ranks": [{"task": "trec", "budget": 0.01, "ranks": {name: [[64, 64], 8] for name in names}}],
    }
    rows.save(measured, tmp_path / "text.json")
    (tmp_path / "theory.json").write_text(json.dumps(theory))
    assert report.main(["--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert "<td>0.2000</td><td>0.100 to 0.300</td><td>0.2500</td><td>0.80</td>" in text and "3 of 3" in text
    assert all((tmp_path / "out" / f"theory-{n}.png").is_file() for n in ("spectra", "matrices", "ranks-trec"))


def test_labels_keep_their_order_and_a_gap():
    places = spread([0.5, 0.5, 0.1, 0.51, 0.99, 1.0], 0.06)
    assert places[2] == pytest.approx(0.1)
    ordered = sorted(places)
    assert all(b - a >= 0.06 - 1e-9 for a, b in zip(ordered, ordered[1:])) and ordered[-1] <= 1
    assert places[0] < places[3]
