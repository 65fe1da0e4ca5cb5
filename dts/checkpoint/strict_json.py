"""JSON from files that anybody may have written: refused where it could do harm, before it is parsed."""

import json
import re

DEEPEST = 64  # objects and lists within each other; real ones have less than ten
LONGEST_NUMBER = 40  # digits
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class NotStrict(ValueError):
    """JSON that is damaged, nested too deeply, too large, or says a thing twice."""


def parse(text: bytes, largest: int, constants: bool = False):
    """The value of a JSON text in UTF-8.

    Raises NotStrict for more than ``largest`` bytes, nesting deeper than DEEPEST, keys given twice, numbers of more
    than LONGEST_NUMBER digits, half surrogates, and NaN and Infinity unless ``constants``.
    """
    if len(text) > largest:
        raise NotStrict(f"it has {len(text):,} bytes, more than the {largest:,} that are read")
    depth = deepest = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", text)):
        depth += 1 if bracket[0] in b"[{" else -1
        deepest = max(deepest, depth)
        if depth > DEEPEST:
            raise NotStrict(f"it is nested more than {DEEPEST} deep")
    try:
        words = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotStrict(f"it is not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(
            words, object_pairs_hook=_once, parse_int=_whole, parse_constant=None if constants else _none
        )
    except json.JSONDecodeError as error:
        raise NotStrict(f"it is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    if "\\u" in words:
        _no_half_surrogates(value)
    return value


def _once(pairs: list[tuple[str, object]]) -> dict:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise NotStrict(f"it has {key!r} twice")
        found[key] = value
    return found


def _whole(digits: str):
    if len(digits) > LONGEST_NUMBER:
        raise NotStrict(f"it has a number of {len(digits)} digits")
    return -0.0 if digits == "-0" else int(digits)


def _none(name: str):
    raise NotStrict(f"it has {name}, which is no JSON number")


def _no_half_surrogates(value) -> None:
    texts = [value] if isinstance(value, str) else ()
    if isinstance(value, dict):
        texts = list(value)
    for one in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in one):
            raise NotStrict(f"{one!r} is no text: it has half a surrogate pair")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _no_half_surrogates(inner)
