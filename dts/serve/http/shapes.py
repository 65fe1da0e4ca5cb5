"""Bodies of requests.  What is not known here is refused by name, so that nothing that was asked for is left undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

UNHEEDED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
}  # say nothing of answers
NEUTRAL: dict[str, tuple[Any, ...]] = {  # fields that are not supported may be there with a value that changes nothing
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "best_of": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True, False),
    "suffix": ("",),
    "echo": (False,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
}
SCORES = 20  # likeliest tokens that may be told with each
FIELDS = 100  # of one object: more than any has, and few enough to be told what is wrong with

# of a list with a million wrong items one is told: an error for each would take as long as half a minute
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Words = Annotated[list[str], Field(min_length=1, fail_fast=True)]


def _any_of_them(given: Any, read: Callable[[Any], Any]) -> Any:
    """One mistake, of the field, instead of one of each kind that it might have been."""
    try:
        return read(given)
    except ValidationError:
        words = "it is to be a text, a list of texts, a list of token ids, or a list of such lists, and none empty"
        raise PydanticCustomError("texts", words) from None


Texts = Annotated[
    str | Words | Ids | Annotated[list[Ids], Field(min_length=1, fail_fast=True)], WrapValidator(_any_of_them)
]


def _short_for(whole: Callable[[str], Any], words: str) -> BeforeValidator:
    """A text may stand for something longer.  words: what else there may be."""

    def lengthen(given: Any) -> Any:
        if isinstance(given, str):
            return whole(given)
        if not isinstance(given, (list, dict, BaseModel)):
            raise PydanticCustomError("short", f"it is to be a text or {words}")
        return given

    return BeforeValidator(lengthen)


class Strict(BaseModel):
    """An object with these fields and no others, each of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > FIELDS:
            raise ValueError(f"{len(given)} fields, and at most {FIELDS} may be")
        return given


class Asked(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}  # beside those of `NEUTRAL`

    model: Annotated[str, Field(min_length=1, max_length=2000)]
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Without what was not given (null), and fields that change no answer."""
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if value is not None
            and (name in cls.model_fields or name not in UNHEEDED and not cls._neutral(name, value))
        }

    @classmethod
    def _neutral(cls, name: str, value: Any) -> bool:
        known = (*NEUTRAL.get(name, ()), *cls.neutral.get(name, ()))
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in known)


class StreamOptions(Strict):
    include_usage: bool = False


class Generation(Asked):
    n: Annotated[int, Field(ge=1)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: (
        Annotated[
            list[str], Field(max_length=16, fail_fast=True), _short_for(lambda text: [text], "a list of at most 16")
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def scores(self) -> int | None:
        """How many of the likeliest tokens are told with each, None: no probabilities."""
        raise NotImplementedError

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())


class Completion(Generation):
    neutral = {"add_special_tokens": (True,)}

    prompt: Texts
    logprobs: Annotated[int, Field(ge=0, le=SCORES)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_scores(cls, given: Any) -> Any:
        """``logprobs: false``, of clients that know chats."""
        if isinstance(given, dict) and given.get("logprobs") is False:
            return {name: value for name, value in given.items() if name != "logprobs"}
        return given

    @property
    def scores(self) -> int | None:
        return self.logprobs


class Part(Strict):
    """Of a message's content."""

    type: str
    text: str | None = None


class Message(Strict):
    role: str
    content: Annotated[
        list[Part],
        Field(fail_fast=True),
        _short_for(lambda text: [{"type": "text", "text": text}], "a list of parts of type text"),
    ]
    name: str | None = None


class Chat(Generation):
    neutral = {"add_special_tokens": (False,), "add_generation_prompt": (True,), "continue_final_message": (False,)}

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=SCORES)] | None = None

    @model_validator(mode="after")
    def _both(self) -> Chat:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs are for logprobs: true")
        return self

    @property
    def scores(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class Embedding(Asked):
    neutral = {"normalize": (True,)}

    input: Texts
    encoding_format: str = "float"


class Classification(Asked):
    input: Texts


class Document(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    text: str


class Reranking(Asked):
    query: str
    documents: Annotated[
        list[Annotated[Document, _short_for(lambda text: {"text": text}, "an object with a text")]],
        Field(min_length=1, fail_fast=True),
    ]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = True


class Load(Strict):
    name: Annotated[str, Field(max_length=200)]
    path: Annotated[str, Field(max_length=4000)] | None = None
    load_inplace: bool = False
    pin: bool = False


class Unload(Strict):
    name: Annotated[str, Field(max_length=200)]


class LoadLora(BaseModel):
    """vLLM's names for `Load`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    lora_name: Annotated[str, Field(max_length=200)]
    lora_path: Annotated[str, Field(max_length=4000)]
    load_inplace: bool = False


class UnloadLora(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    lora_name: Annotated[str, Field(max_length=200)]
