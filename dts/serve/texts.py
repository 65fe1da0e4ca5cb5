"""Text to tokens and back, by the base's tokenizer or by one that a task brings."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dts.adapter import Adapter, AdapterError
from dts.adapter.carried import copy_files
from dts.checkpoint.errors import first_line
from dts.serve.catalogue import Catalogue
from dts.serve.choice import Choice
from dts.serve.refused import INPUT, Refused

NOT_TEXT = ("generation_config.json", "processor_config.json", "preprocessor_config.json")
REMEMBERED = 64  # tokenizers of tasks
Files = tuple[tuple[str, str | None], ...]  # names and digests of the tokenizer files that an adapter carries


class Text:
    """One tokenizer, for any thread; None: of a model that takes token ids only."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._lock = threading.Lock()  # those of transformers keep state while they encode

    @property
    def ends(self) -> frozenset[int]:
        end = None if self.tokenizer is None else self.tokenizer.eos_token_id
        return frozenset() if end is None else frozenset([end])

    @cached_property
    def words(self) -> str | None:
        """Equal for tokenizers that make the same tokens of every text and conversation and end answers alike, whatever
        else their files say; None: of this one that cannot be told."""
        if self.tokenizer is None or not getattr(self.tokenizer, "is_fast", False):
            return None
        with self._lock:
            told = json.loads(self.tokenizer.backend_tokenizer.to_str())
        marks = {name: str(mark) for name, mark in self.tokenizer.special_tokens_map.items() if name != "pad_token"}
        told |= {"truncation": None, "padding": None, "template": self.tokenizer.chat_template, "marks": marks}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Tokens there are."""
        return 0 if self.tokenizer is None else len(self.tokenizer)

    @property
    def longest(self) -> int | None:
        """Tokens that its model takes, None: it does not say."""
        found = None if self.tokenizer is None else self.tokenizer.model_max_length
        return None if found is None or found >= 1 << 30 else found

    def _check(self, text: str, instead: str = "send lists of token ids") -> None:
        """instead: what does without a tokenizer."""
        if self.tokenizer is None:
            raise Refused(f"this model has no tokenizer: {instead}", code="no_tokenizer", param=INPUT)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Refused(f"a text has half a character at {error.start}", param=INPUT) from None

    def encode(self, text: str, special: bool = True) -> list[int]:
        self._check(text)
        with self._lock:
            return self.tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]

    def pair(self, first: str, second: str) -> tuple[list[int], list[int] | None]:
        """Token ids of two texts as one row, and which of the two each is of, where the tokenizer says so."""
        for text in (first, second):
            self._check(text, "it reads no pairs of texts")
        with self._lock:
            found = self.tokenizer(first, second, truncation=False, verbose=False)
        types = found.get("token_type_ids")
        return found["input_ids"], types if types is not None and any(types) else None

    def token(self, token: int) -> str:
        """One token as it is written, special ones too."""
        with self._lock:
            return self.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def decode(self, ids: Sequence[int]) -> str:
        with self._lock:
            return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """A conversation as the tokenizer's template writes it, up to where the answer begins."""
        self._check("", "ask /v1/completions with lists of token ids")
        if not self.tokenizer.chat_template:
            raise Refused(
                "the tokenizer of this model has no chat template: ask /v1/completions with the text as the model "
                "expects it",
                code="no_chat_template",
            )
        from jinja2 import TemplateError

        try:
            with self._lock:
                text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise Refused(f"the chat template does not take these messages: {error}", param="messages") from None
        return self.encode(text, special=False)


class Texts:
    """The tokenizer of every task: the base's, unless its adapter carries files of another."""

    def __init__(self, tokenizer: Any, catalogue: Catalogue):
        self.base, self._catalogue = Text(tokenizer), catalogue
        self._made: OrderedDict[Files, Text] = OrderedDict()
        self._others: dict[Files, bool] = {}  # whether these files make other tokens than the base's
        self._lock = threading.Lock()

    def of(self, choice: Choice) -> Text:
        """Raises Refused: 404 for a task that is not there, 400 for a mixture of tasks with different tokenizers."""
        adapters = [self._catalogue.get(name) for name in choice.tasks]
        kinds = {(key := _files(adapter)): self._with(key, adapter) for adapter in adapters}
        found = list(kinds.values()) or [self.base]
        if any(_differ(found[0], other) for other in found[1:]):
            raise Refused("the tasks of this mixture have different tokenizers", param="model")
        return min(found, key=lambda text: text.longest or 1 << 30)

    def own(self, name: str) -> bool:
        """Whether a task brings a tokenizer that makes other tokens than the base's; False too where there is no such
        task, or it is damaged."""
        try:
            adapter = self._catalogue.get(name)
            key = _files(adapter)
            if key and key not in self._others:
                self._others[key] = _differ(self.base, self._with(key, adapter))
            return bool(key) and self._others[key]
        except Refused:
            return False

    def _with(self, key: Files, adapter: Adapter) -> Text:
        if not key:
            return self.base
        with self._lock:
            if key not in self._made:
                self._made[key] = Text(self._read(adapter))
            self._made.move_to_end(key)
            while len(self._made) > REMEMBERED:
                self._made.popitem(last=False)
            return self._made[key]

    def _read(self, adapter: Adapter) -> Any:
        """The base's files under those of the adapter, which are compared with their digests."""
        from transformers import AutoTokenizer

        place = Path(tempfile.mkdtemp(prefix="dts-serve-"))
        try:
            if self.base.tokenizer is not None:
                self.base.tokenizer.save_pretrained(place)
            copy_files(adapter, place)
            return AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
        except AdapterError as error:
            raise self._catalogue.damaged(adapter.name, error) from None
        except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # transformers has OSErrors of its own
                raise self._catalogue.damaged(adapter.name, error) from None
            why = first_line(error).replace(str(place), "").strip()
            raise Refused(f"the tokenizer of {adapter.name!r} cannot be read: {why}", 409, "damaged_adapter") from None
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _differ(one: Text, other: Text) -> bool:
    """Whether two tokenizers make other tokens of some text, as far as that can be told."""
    return one is not other and (one.words is None or one.words != other.words)


def _files(adapter: Adapter) -> Files:
    """Names and digests of the tokenizer files that an adapter carries."""
    carried = adapter.config["files"].items()
    return tuple(sorted((name, about["sha256"]) for name, about in carried if name not in NOT_TEXT))
