"""Tokens with their log probabilities, in the two shapes that OpenAI's routes have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dts.serve.sampling import Scored
from dts.serve.texts import Text


class OfCompletions:
    """Four lists, a place a token.  Kept for an answer that streams: where each row's next token begins in its text."""

    def __init__(self, text: Text):
        self._text, self._offsets = text, dict[int, int]()

    def __call__(self, row: int, scored: Sequence[Scored]) -> dict[str, Any]:
        tokens = [self._text.token(one.token) for one in scored]
        places, at = [], self._offsets.get(row, 0)
        for token in tokens:
            places.append(at)
            at += len(token)
        self._offsets[row] = at
        tops = [
            {self._text.token(token): logprob for token, logprob in (*one.top, (one.token, one.logprob))}
            for one in scored
        ]
        logprobs = [one.logprob for one in scored]
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": places}


class OfChat:
    """An object a token."""

    def __init__(self, text: Text):
        self._text = text

    def __call__(self, row: int, scored: Sequence[Scored]) -> dict[str, Any]:
        content = []
        for one in scored:
            top = [self._told(token, logprob) for token, logprob in one.top]
            content.append(self._told(one.token, one.logprob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _told(self, token: int, logprob: float) -> dict[str, Any]:
        """bytes: None where the token is a part of a character."""
        text = self._text.token(token)
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
