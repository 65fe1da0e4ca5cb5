import pytest

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("agreement", [1.0, 0.97, 0.0])
@pytest.mark.parametrize("base", [0.5, None])
def test_every_report_is_drawn(tmp_path, agreement, base):
    """An interval that ends at 100 % is a hair below it in floating point."""
    from dts.evaluate.plot import plot

    rows = [
        {"what": "fine-tune", "name": "f"},
        {"what": "base", "name": "b", "agreement": base, "kl": base},
        {"what": "adapter", "name": "a", "agreement": agreement, "kl": 0.0, "bytes": 1, "amr": 0.01, "places": 100},
        {"what": "adapter", "name": "c", "agreement": agreement, "kl": 0.1, "bytes": 2, "amr": 0.02, "places": 7},
    ]
    plot(
        {"models": rows, "inputs": {"count": 100, "made_up": base is None, "source": "x.csv"}},
        tmp_path / "in" / "p.png",
    )
    assert (tmp_path / "in" / "p.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("place", "says"),
    [("plot.foo", "a plot ends in .*png"), ("no/plot.png", "no such folder"), ("here.png", "is a folder")],
)
def test_a_plot_that_cannot_be_written_is_refused_before_the_work(tmp_path, place, says):
    from dts.evaluate.plot import check_place

    (tmp_path / "here.png").mkdir()
    assert check_place(tmp_path / "plot.svg") == tmp_path / "plot.svg"
    with pytest.raises(ValueError, match=says):
        check_place(tmp_path / place)
