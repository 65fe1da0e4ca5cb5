"""Bodies of requests.  What is not known here is refused by name, so that nothing that was asked for is left undone."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

UNHEEDED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
}  # say nothing of answers
NEUTRAL = {  # fields that are not supported may be there with the value that changes nothing
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "best_of": 1,
    "logit_bias": {},
    "tools": [],
    "response_format": {"type": "text"},
    "parallel_tool_calls": True,
}
SCORES = 20  # likeliest tokens that may be told with each

Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: Annotated[str, Field(min_length=1, max_length=2000)]
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Without fields that change no answer."""
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if name in cls.model_fields
            and not (name == "logprobs" and value is False)
            or not (name in UNHEEDED or value is None or value is False or neutral(name, value))
        }


def neutral(name: str, value: Any) -> bool:
    return name in NEUTRAL and value == NEUTRAL[name]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class Generation(Asked):
    n: Annotated[int, Field(ge=1)] = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
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
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Completion(Generation):
    prompt: Texts
    logprobs: Annotated[int, Field(ge=0, le=SCORES)] | None = None

    @property
    def scores(self) -> int | None:
        return self.logprobs


class Part(BaseModel):
    """Of a message's content."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: str
    text: str | None = None


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: str | list[Part]
    name: str | None = None


class Chat(Generation):
    messages: Annotated[list[Message], Field(min_length=1)]
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
    input: Texts
    encoding_format: str = "float"


class Classification(Asked):
    input: Texts


class Document(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    text: str


class Reranking(Asked):
    query: str
    documents: Annotated[list[str | Document], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = True


class Load(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=200)]
    path: Annotated[str, Field(max_length=4000)] | None = None
    load_inplace: bool = False
    pin: bool = False


class Unload(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

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
