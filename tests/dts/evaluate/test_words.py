import pytest

from dts.evaluate.words import floor, interval, verdict


def test_the_interval_is_wilsons():
    low, high = interval(0.5, 100)  # 0.4038 to 0.5962, as textbooks have it
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert interval(1.0, 10)[1] == pytest.approx(1.0) and interval(1.0, 10)[0] < 0.73
    assert interval(0.0, 10)[0] == 0.0


def test_nearly_all_is_never_said_to_be_all():
    assert floor(1.0) == "100.0" and floor(0.9999) == "99.9" and floor(0.995) == "99.5" and floor(0.29) == "29.0"


def test_made_up_inputs_and_tokens_are_called_so():
    said = verdict(0.995, 1000)
    assert said.startswith("answers as the fine-tune on 99.5 % of 1,000 inputs (95 % interval: 98.8 to 99.8 %)")
    assert "made-up" not in said and "made-up" in verdict(0.9, 10, made_up=True)
    assert "interval" not in verdict(0.9, 10, "tokens")
