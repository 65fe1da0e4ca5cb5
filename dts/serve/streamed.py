"""Tokens of one answer to text, piece by piece: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]  # ids -> text
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders put for a part of a character


class Streamed:
    """decode: of the row's tokenizer;  stop: texts before which the answer ends;  whole: nobody asks for its text
    before it has ended."""

    def __init__(self, decode: Decode, stop: Sequence[str] = (), whole: bool = False):
        self._decode, self._stop = decode, [text for text in stop if text]
        self._later = whole and not self._stop  # decoding takes as long as a small model's layer, at every token
        self._ids: list[int] = []
        self._from, self._read = 0, 0  # of ids: where decoding begins (its context), and what was given out
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that can be given out now; ``stopped`` says whether a stop string was met."""
        self._ids.append(token)
        return "" if self._later else self._checked(self._new(whole=True))

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        if self.stopped:
            return ""
        text = self._checked(self._new(whole=False))
        return text if self.stopped else text + self._held

    def _new(self, whole: bool) -> str:
        context = self._decode(self._ids[self._from : self._read])
        text = self._decode(self._ids[self._from :])
        if len(text) <= len(context) or (whole and text.endswith(UNFINISHED)):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return text[len(context) :]

    def _checked(self, new: str) -> str:
        text = self._held + new
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text may begin a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
