"""Rows in a table: they come back, numbers take the bytes they need, and what is no table is refused."""

import json
import math
import random

import pytest

from dts.adapter.packed import packed, unpacked
from dts.adapter.table import Unpackable, integer, pack, single, unpack
from tests.dts.adapter.test_golden import FOLDERS
from tests.fuzz.form import opened

ROWS = [
    ("layer.0.weight", {"shape": [384, 1536], "norm": 0.5, "sha256": "0123456789abcdef", "ok": True, "none": None}),
    ("layer.0.bias", {"shape": [384], "norm": 0.1, "base": "01234567"}),
    ("layer.1.weight", {"shape": [384, 1536], "norm": 1.5, "sha256": "ffffffffffffffff", "ok": True, "none": None}),
    ("layer.1.bias", {"shape": [127], "norm": 0.1, "base": "89abcdef"}),
    ("layer.12.bias", {"shape": [0], "norm": 0.1, "base": "89abcdef"}),
    ("007.1234567890.5", {"kind": "tied", "tied_to": "layer.0.bias", "n": 2**63 - 1}),
    ("layer.13.weight", 2.5),
    ("layer.14.weight", 0.1),
    ("é.漢1", {}),
    ("", [[], {}, "ABCDEF01", "0123456", False]),
]


def again(rows, largest=1 << 20):
    names, templates, table = pack(rows)
    return list(unpack(*json.loads(json.dumps([names, templates])), table, largest))


def test_rows_come_back_in_order():
    assert again(ROWS) == ROWS and again([]) == []
    assert [list(row) for _, row in again(ROWS[:4])] == [list(row) for _, row in ROWS[:4]]  # keys in order too


@pytest.mark.parametrize("seed", range(20))
def test_any_rows_come_back(seed):
    draw = random.Random(seed)

    def value(depth):
        kinds = [
            lambda: draw.randrange(2 ** draw.randrange(64)),
            lambda: draw.choice([draw.gauss(0, 1), single(draw.gauss(0, 1)), 0.0, 1e300, 1e-300, -1.0]),
            lambda: draw.choice([None, True, False, "x", "00000000", "f" * 16, "1", "é"]),
        ]
        if depth:
            kinds += [
                lambda: [value(depth - 1) for _ in range(draw.randrange(4))],
                lambda: {draw.choice("abcdef"): value(depth - 1) for _ in range(draw.randrange(4))},
            ]
        return draw.choice(kinds)()

    names = [".".join(draw.choice(["layer", "0", "1", "17", "00", "x2", "weight", ""]) for _ in range(4)) for _ in ROWS]
    rows = [(name, value(3)) for name in names]
    assert again(rows) == rows


def test_names_and_rows_that_repeat_take_a_byte():
    rows = [
        (f"layer.{i}.{part}", {"norm": 0.5, "shape": [i]})
        for i in range(12)
        for part in ("a.weight", "b.weight", "bias")
    ]
    names, templates, table = pack(rows)
    assert len(templates) == 1 and names == [0, "layer.\n.a.weight", 8, "b.weight", 9, "ias"]
    assert (
        len(table) == 36 * 5 + 12 * 3 + 2 * 3 + 11 * 2
    )  # a float32, a byte of a shape; a head of three bytes, or of one


@pytest.mark.parametrize(("x", "nbytes"), [(0.5, 4), (0.1, 8), (single(0.1), 4), (1e300, 8), (1e-40, 8), (0.0, 4)])
def test_numbers_take_the_bytes_they_need(x, nbytes):
    assert len(pack([("a", x)])[2]) == 2 + nbytes and again([("a", x)]) == [("a", x)]


def test_float32s():
    assert single(0.1) == 0.10000000149011612 and single(0.0) == 0.0
    assert single(1e39) is None and single(1e-40) is None and single(math.nan) is None and single(math.inf) is None


def test_whole_numbers_are_as_short_as_can_be():
    assert integer(0) == b"\0" and integer(127) == b"\x7f" and integer(128) == b"\x80\x01"
    for wrong in (-1, 2**63):
        with pytest.raises(Unpackable):
            integer(wrong)


@pytest.mark.parametrize(
    ("names", "templates", "table"),
    [
        (None, [], b""),
        ([0, "a"], None, b""),
        ([0], [1], b""),
        ([1, "a"], [1], b""),
        ([0, "ab", 3, "c"], [1], b""),
        ([True, "a"], [1], b""),
        ([0, 1], [1], b""),
        ([0, "a"], [1], b"\0\0\0"),  # like the row before the first
        ([0, "a", 0, "\n"], [1], b"\x01\0\0\0"),  # the next pattern has a number, the one before had none
        ([0, "a", 0, "b"], [1], b"\x01\0\0\0\0"),  # the next pattern had no template yet
        ([0, "a"], [1], b"\x01\0\0\0"),  # no pattern after the last
        ([0, "a"], [1], b"\x02\0\0"),
        ([0, "a"], [1], b"\x01\x01\0"),
        ([0, "a"], [1], b"\x01\0"),
        ([0, "a"], [1], b"\x01\0\x80"),
        ([0, "a"], [1], b"\x01\0\x80\0"),  # longer than it need be
        ([0, "a"], [1], b"\x01\0" + b"\xff" * 9 + b"\x01"),
        ([0, "a"], [4], b"\x01\0\0\0\0"),
        ([0, "a"], [-8], b"\x01\0\0\0\0"),
        *[([0, "a"], [odd], b"\x01\0" + bytes(16)) for odd in (0, 2, 3, 16, -1, -2, 4.0, 1.5, -8.0, 10**30, [5])],
    ],
)
def test_what_is_no_table_is_refused(names, templates, table):
    with pytest.raises(Unpackable):
        list(unpack(names, templates, table, 1000))


def test_a_few_bytes_do_not_become_many():
    wide = {"x": "y" * 1000}
    with pytest.raises(Unpackable, match="more than 10,000 bytes"):
        list(unpack([0, "\n"], [wide], b"".join(b"\x01" + bytes([i]) + b"\0" for i in range(100)), 10_000))
    with pytest.raises(Unpackable, match="more than 10,000 bytes"):
        list(unpack([n for i in range(200) for n in (100 * i, "x" * 100)], [1], b"", 10_000))
    with pytest.raises(Unpackable, match="more than 10,000 bytes"):
        list(unpack([0, "\n"], [None], b"".join(b"\x01" + integer(i) + b"\0" for i in range(1000)), 10_000))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_configuration_comes_back(folder):
    inner = opened(folder)
    layouts = {name: {} for name in inner.config["tensors"]}
    text, table = packed(inner.config, layouts)
    config, tensors = unpacked(json.loads(json.dumps(text)), table, {}, 1 << 20)
    assert tensors == {}
    for row in [*config["tensors"].values(), *inner.config["tensors"].values()]:
        row.pop("bytes", None)
    assert config == inner.config


LABELS = [
    ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, ["a", "b"], {"task", "id2label"}),
    ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, ["x", "y"], {"id2label"}),
    ({"id2label": {"0": "a", "1": "a"}, "label2id": {"a": 1}}, None, set()),
    ({"id2label": {"1": "a", "2": "b"}, "label2id": {"a": 1, "b": 3}}, ["a", "b"], set()),
    ({"id2label": {}, "label2id": {}}, [], set()),
    ({"id2label": {"00": "a"}, "label2id": {"a": 0}}, ["a"], set()),
    ({"id2label": None, "label2id": None}, None, set()),
]


@pytest.mark.parametrize(("given", "classes", "words"), LABELS)
def test_labels_are_said_once_and_come_back(given, classes, words):
    config = opened(FOLDERS[-1]).config | {"model_config": given, "tensors": {}, "dropped": {}}
    config["task"] = config["task"] | {"class_names": classes}
    text, table = packed(config, {})
    assert {value for value in text["model_config"].values() if isinstance(value, str)} == words
    assert unpacked(json.loads(json.dumps(text)), table, {}, 1000)[0]["model_config"] == given
