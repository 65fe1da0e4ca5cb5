"""Is a JSON value what it should be?  Small tests and how they combine, for all that comes from files of others."""

import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any

Test = Callable[[Any], bool]
LARGEST = 1e30  # of norms, errors, scales, elements: their squares and the sums of many of them are still numbers
_HEX = re.compile("[0-9a-f]*").fullmatch
MOST = 2**62  # bytes, elements
DIMENSIONS = 16


def text(value) -> bool:
    return isinstance(value, str)


def words(value) -> bool:
    """Text without control characters but line ends and tabs."""
    return isinstance(value, str) and _without_controls(value, "\n\r\t")


def line(value) -> bool:
    """Text in one line without any control character, not empty: names of tasks, tensors, files."""
    return isinstance(value, str) and value != "" and _without_controls(value)


def _without_controls(value: str, but: str = "") -> bool:
    if value.isprintable():  # no control character is, and nearly all names are: an adapter has thousands of them
        return True
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value if letter not in but)


def number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def size(value) -> bool:
    """A number that is not negative: a norm, a share."""
    return number(value) and value >= 0


def real(value) -> bool:
    """What torch multiplies by: a whole number may be too large for it."""
    return isinstance(value, float) and number(value)


def error(value) -> bool:
    """A squared relative error, which float arithmetic may have left a little below 0."""
    return number(value) and value > -0.01


def count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


def positive(value) -> bool:
    return count(value) and value > 0


def flag(value) -> bool:
    return isinstance(value, bool)


def section(value) -> bool:
    return isinstance(value, dict)


def shape(value) -> bool:
    return _counts(value) and len(value) <= DIMENSIONS and math.prod(value) <= MOST


def digest(value, digits: int = 16) -> bool:
    return isinstance(value, str) and len(value) == digits and _HEX(value) is not None


def short_digest(value) -> bool:
    return digest(value, 8)


def or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


_counts = list_of(count)


def one_of(*choices: str) -> Test:
    return lambda value: isinstance(value, str) and value in choices


def by_name(test: Test) -> Test:
    return lambda value: isinstance(value, dict) and all(map(line, value)) and all(map(test, value.values()))


def exactly(**tests: Test) -> Test:
    """An object with these keys and no others."""
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == tests.keys()
        and all(test(value[key]) for key, test in tests.items())
    )


def with_or_without(key: str, test: Test, **tests: Test) -> Test:
    """An object with these keys, and perhaps ``key``, and no others."""
    return lambda value: exactly(**tests, **{key: test} if isinstance(value, dict) and key in value else {})(value)


def shown(value) -> str:
    """A value for a message, short whatever it is."""
    if isinstance(value, (dict, list)) and len(value) > 20:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    given = f"{value!r:.200}"
    return given if len(given) <= 60 else f"{given[:57]}..."
