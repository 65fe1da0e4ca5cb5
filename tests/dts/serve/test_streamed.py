"""Text comes in pieces that together are the whole, without a half character and without a stop string."""

import pytest

from dts.serve.streamed import Streamed


def decode(ids):
    return bytes(ids).decode("utf-8", errors="replace")


def run(text: str | bytes, stop=()):
    data = text.encode() if isinstance(text, str) else text
    streamed, pieces = Streamed(decode, stop), []
    for byte in data:
        pieces.append(streamed.push(byte))
        if streamed.stopped:
            break
    return [*pieces, streamed.rest()], streamed


@pytest.mark.parametrize("text", ["plain", "é", "año 日本語 🙂 end", "a" * 50])
def test_pieces_are_the_text_and_characters_are_whole(text):
    pieces, streamed = run(text)
    assert "".join(pieces) == text and not streamed.stopped
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_what_is_no_character_comes_at_the_end():
    assert "".join(run(b"ab\xe6\x97")[0]) == "ab\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    "text, stop, expected",
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("aab aac", ["aac"], "aab "),
        ("xENDx", ["END", "xE"], ""),
        ("almost EN", ["END"], "almost EN"),
        ("日本語", ["本"], "日"),
        ("abab", ["abc", "bab"], "a"),
    ],
)
def test_answers_end_before_a_stop_string_of_which_nothing_was_said(text, stop, expected):
    pieces, streamed = run(text, stop)
    assert "".join(pieces) == expected and streamed.stopped == any(one in text for one in stop)
    said = ""
    for piece in pieces:
        said += piece
        assert expected.startswith(said)


def test_an_empty_stop_string_stops_nothing():
    assert "".join(run("abc", [""])[0]) == "abc"


@pytest.mark.parametrize("stop", [[], ["lo w"]])
def test_text_that_nobody_asks_for_before_its_end_is_the_same(stop):
    data, calls = "año hello world 🙂".encode() + b"\xe6", []
    whole = Streamed(lambda ids: (calls.append(1), decode(ids))[1], stop, whole=True)
    text = ""
    for byte in data:
        text += whole.push(byte)
        if whole.stopped:
            break
    assert text + whole.rest() == "".join(run(data, stop)[0]) and whole.stopped == bool(stop)
    assert bool(stop) or len(calls) == 2  # once, and of nothing before it
