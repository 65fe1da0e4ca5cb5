"""Tests of JSON values, of which any may be of any type."""

import pytest

from dts import values

ODD = [
    None,
    True,
    -1,
    0,
    1,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    1e31,
    "",
    "a",
    "a\nb",
    "a\0",
    "a\u200f",  # not printable, and no control character
    [],
    [1],
    {},
    {"a": 1},
]


@pytest.mark.parametrize(
    ("test", "passing"),
    [
        (values.text, ["", "a", "a\nb", "a\0", "a\u200f"]),
        (values.words, ["", "a", "a\nb", "a\u200f"]),
        (values.line, ["a", "a\u200f"]),
        (values.number, [-1, 0, 1, 2**70, 1.5]),
        (values.size, [0, 1, 2**70, 1.5]),
        (values.real, [1.5]),
        (values.count, [0, 1]),
        (values.positive, [1]),
        (values.flag, [True]),
        (values.section, [{}, {"a": 1}]),
        (values.shape, [[], [1]]),
        (values.or_none(values.positive), [None, 1]),
        (values.list_of(values.positive), [[], [1]]),
        (values.one_of("a", "b"), ["a"]),
        (values.by_name(values.positive), [{}, {"a": 1}]),
        (values.exactly(a=values.positive), [{"a": 1}]),
        (values.digest, []),
    ],
)
def test_each_takes_what_it_says_and_nothing_else(test, passing):
    assert [value for value in ODD if test(value)] == passing


def test_errors_may_be_a_little_below_zero():
    assert values.error(-0.001) and not values.error(-0.1) and values.digest("0123456789abcdef")


def test_what_is_shown_is_short():
    for value in ("x" * 10_000, list(range(10_000)), {str(i): i for i in range(10_000)}, [["y" * 5_000]]):
        assert len(values.shown(value)) <= 60
