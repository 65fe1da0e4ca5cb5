"""Rows of many tensors in few bytes: what they share is written once as JSON, their numbers one after another.

A *pattern* is a name with a line end (which no name holds) in place of every whole number in it.  Patterns stand in a
list of how many letters of the one before a pattern begins with, and its other letters.
A *template* is a row with, in place of every number and digest, how it is stored:

    1     a whole number: 7 bits a byte, the lowest first, the highest bit set in all bytes but the last (LEB128)
    4, 8  a float32, a float64, little-endian: the shorter one that holds the number exactly
    -k    k bytes, which stand for 2 k lower-case hex digits

The table holds every row, one after another.  It begins, in whole numbers as above, with 0 where its pattern follows
that of the row before, its name has the same numbers, and its template is the one its pattern had last; else with one
more than the pattern's place, the name's numbers and the template's place.  Then, in order, what the template says.
"""

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

NUMBER = re.compile(r"(?<!\d)(?:0|[1-9]\d{0,8})(?!\d)", re.ASCII)  # which a whole number gives back as it was
HOLE = "\n"
FLOATS = {4: struct.Struct("<f"), 8: struct.Struct("<d")}
DIGESTS = {8: -4, 16: -8}  # hex digits -> how they are stored
LARGEST_INTEGER = 2**63 - 1
QUOTES = 16  # bytes of a row as text beside its name and its template, about
_HEX = re.compile(r"[0-9a-f]+")


class Unpackable(ValueError):
    """A table that is no table, or a row that cannot stand in one."""


def pack(rows: Iterable[tuple[str, Any]]) -> tuple[list, list, bytes]:
    """(patterns shortened, templates, table) of (name, plain data for JSON).

    Raises Unpackable for numbers that no table holds.
    """
    patterns: dict[str, int] = {}
    templates: dict[str, tuple[int, Any]] = {}
    table, last, before = bytearray(), dict[int, int](), (-1, list[str]())
    for name, row in rows:
        if HOLE in name:
            raise Unpackable(f"{name!r} has a line end in it")
        pattern, numbers = patterns.setdefault(NUMBER.sub(HOLE, name), len(patterns)), NUMBER.findall(name)
        content = bytearray()
        template = _split(row, content)
        place = templates.setdefault(json.dumps(template), (len(templates), template))[0]
        if before == (pattern - 1, numbers) and last.get(pattern) == place:
            table += integer(0)
        else:
            table += b"".join(map(integer, (1 + pattern, *map(int, numbers), place)))
        table += content
        last[pattern], before = place, (pattern, numbers)
    return _shortened(list(patterns)), [template for _, template in templates.values()], bytes(table)


def _shortened(patterns: list[str]) -> list[int | str]:
    short: list[int | str] = []
    for before, pattern in zip(["", *patterns], patterns):
        shared = len(os.path.commonprefix([before, pattern]))
        short += [shared, pattern[shared:]]
    return short


def _patterns(short: Any, largest: int) -> list[str]:
    """The inverse of `_shortened`; raises Unpackable for what is none, and for more than ``largest`` letters."""
    patterns, size = [""], 0
    if not isinstance(short, list) or len(short) % 2:
        raise Unpackable("its names are no list of numbers and texts")
    for shared, text in zip(short[::2], short[1::2]):
        if type(shared) is not int or not 0 <= shared <= len(patterns[-1]) or not isinstance(text, str):
            raise Unpackable(f"its names have {shared!r:.40}, {text!r:.40}, which do not follow one another")
        patterns.append(patterns[-1][:shared] + text)
        size += len(patterns[-1])
        if size > largest:
            raise Unpackable(f"its names would take more than {largest:,} bytes")
    return patterns[1:]


def _split(value: Any, content: bytearray) -> Any:
    """The template of a value; what it leaves open goes to ``content``."""
    if isinstance(value, dict):
        return {key: _split(inner, content) for key, inner in value.items()}
    if isinstance(value, list):
        return [_split(inner, content) for inner in value]
    if isinstance(value, str) and len(value) in DIGESTS and _HEX.fullmatch(value):
        content += bytes.fromhex(value)
        return DIGESTS[len(value)]
    if isinstance(value, float):
        kind = 4 if single(value) == value else 8
        content += struct.pack("<f" if kind == 4 else "<d", value)
        return kind
    if isinstance(value, int) and not isinstance(value, bool):
        content += integer(value)
        return 1
    return value


def single(x: float) -> float | None:
    """The nearest float32, as a float; None where there is none that is as exact as others are."""
    if x == 0:
        return x
    try:
        near = struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return None
    return near if 2.0**-126 <= abs(near) < float("inf") else None


def integer(value: int) -> bytes:
    """A whole number as the table has it."""
    if not 0 <= value <= LARGEST_INTEGER:
        raise Unpackable(f"{value} is no number from 0 to 2^63 - 1")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def unpack(patterns: Any, templates: Any, table: bytes, largest: int) -> Iterator[tuple[str, Any]]:
    """The inverse of `pack`, of what may come from anywhere.

    Raises Unpackable for what is no table, and where rows would take more than about ``largest`` bytes as text.
    """
    if not isinstance(templates, list):
        raise Unpackable("its rows are no list of templates")
    split = [pattern.split(HOLE) for pattern in _patterns(patterns, largest)]
    sizes = [len(json.dumps(template)) for template in templates]
    rest, size, pattern, numbers, last = _Rest(table), 0, -1, list[int](), dict[int, int]()
    fills: dict[int, Fill] = {}  # by the template's place
    while rest.at < len(table):
        head = rest.integer()
        pattern = rest.among(pattern + 1 if head == 0 else head - 1, split)
        texts = split[pattern]
        numbers = numbers if head == 0 else [rest.integer() for _ in texts[1:]]
        if len(numbers) != len(texts) - 1 or head == 0 and pattern not in last:
            raise Unpackable(f"its table has a row like the one before, and {texts[0]!r:.40} is not")
        last[pattern] = place = last[pattern] if head == 0 else rest.among(rest.integer(), templates)
        name = texts[0] + "".join(f"{number}{text}" for number, text in zip(numbers, texts[1:]))
        size += len(name) + sizes[place] + QUOTES
        if size > largest:
            raise Unpackable(f"its rows would take more than {largest:,} bytes")
        if place not in fills:
            fills[place] = filler(templates[place])
        yield name, fills[place](rest)


class _Rest:
    """A table that is read from its start."""

    def __init__(self, table: bytes):
        self.table, self.at = table, 0

    def take(self, count: int) -> bytes:
        taken = self.table[self.at : self.at + count]
        if len(taken) < count:
            raise Unpackable("its table ends within a row")
        self.at += count
        return taken

    def integer(self) -> int:
        if self.at < len(self.table) and self.table[self.at] < 128:  # nearly all of them
            self.at += 1
            return self.table[self.at - 1]
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 56:
                raise Unpackable("its table has a number beyond 2^63")
        if shift and not byte:
            raise Unpackable("its table has a number that is longer than it need be")
        return value

    @staticmethod
    def among(place: int, choices: list) -> int:
        if place >= len(choices):
            raise Unpackable(f"its table names number {place} of {len(choices)}")
        return place

    def digits(self, count: int) -> str:
        return self.take(count).hex()

    def number(self, of: struct.Struct) -> float:
        found: float = of.unpack(self.take(of.size))[0]
        return found


Fill = Callable[[_Rest], Any]


def filler(template: Any) -> Fill:
    """What makes a row of a template and of what stands in the table; looked at once a template, not once a row.

    Raises Unpackable for a template that is none.
    """
    if isinstance(template, dict):
        keys, inner = list(template), [filler(one) for one in template.values()]
        return lambda rest: dict(zip(keys, [fill(rest) for fill in inner]))
    if isinstance(template, list):
        fills = [filler(inner) for inner in template]
        return lambda rest: [fill(rest) for fill in fills]
    if template is None or isinstance(template, (bool, str)):
        return lambda rest: template
    if isinstance(template, int) and template == 1:
        return _Rest.integer
    if isinstance(template, int) and template in FLOATS:
        of = FLOATS[template]
        return lambda rest: rest.number(of)
    if isinstance(template, int) and template in DIGESTS.values():
        return lambda rest: rest.digits(-template)
    raise Unpackable(f"its rows have a {template!r:.40}, which stands for nothing")
