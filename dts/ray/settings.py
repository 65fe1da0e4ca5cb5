"""What an application of replicas is started with, as `dts serve` names it, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dts.ray.cluster import from_root
from dts.serve.options import Limits, Options, problems
from dts.serve.waiting import Batching
from dts.sizes import parse_bytes


class Settings(BaseModel):
    """The options of `dts serve` by their names, and of Ray:

    replicas: engines, each with the whole base;  max_replicas: up to so many as requests demand;  target: requests a
    replica that this aims at, None: its batch's rows;  fronts: processes that take requests in;  cpus, gpus: of a
    replica;  slack: requests by which a replica that holds a task may be busier than another, and still get the next.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    adapters: str
    name: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantised_from: str | None = None
    pooling: Literal["mean", "first", "last"] = "mean"
    memory: int | None = None
    pin: tuple[str, ...] = ()
    batch: int = Batching.rows
    batch_tokens: int = Batching.tokens
    wait: float = Batching.wait * 1000
    queue: int = Batching.queue
    max_body: int = Limits.body
    max_prompt: int | None = Limits.prompt
    max_tokens: int = Limits.tokens
    max_rows: int = Limits.rows
    timeout: float = Limits.seconds
    api_keys: str | None = None
    admin_keys: str | None = None
    drain: int = Options.drain
    trust_remote_code: bool = False

    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    target: float | None = Field(None, gt=0)
    fronts: int = Field(1, ge=1)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    slack: int = Field(8, ge=0)

    @field_validator("memory", "max_body", mode="before")
    @classmethod
    def _size(cls, given: Any, about: Any) -> Any:
        """500MB, as on a command line."""
        return parse_bytes(given, about.field_name) if isinstance(given, str) else given

    @field_validator("pin", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        """a,b: what a command line can say."""
        return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else given

    @field_validator("model", "adapters", "quantised_from", "api_keys", "admin_keys")
    @classmethod
    def _place(cls, given: str | None) -> str | None:
        """From the root on, as replicas run in folders of their own."""
        return None if given is None else from_root(given)

    def options(self) -> Options:
        """For an engine."""
        return Options(
            self.model,
            Path(self.adapters),
            name=self.name,
            api_keys=_path(self.api_keys),
            admin_keys=_path(self.admin_keys),
            memory=self.memory,
            pinned=self.pin,
            pooling=self.pooling,
            device=self.device,
            dtype=self.dtype,
            quantised_from=self.quantised_from,
            drain=self.drain,
            trusted=self.trust_remote_code,
            batching=Batching(self.batch, self.batch_tokens, self.wait / 1000, self.queue),
            limits=Limits(self.max_body, self.max_prompt, self.max_tokens, self.max_rows, self.timeout),
        )


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def checked(given: Mapping[str, Any]) -> Settings:
    """Raises ValueError that lists everything that keeps the application from starting."""
    wrong, settings = [], None
    try:
        settings = Settings.model_validate(dict(given))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg']}" for one in error.errors()]
    if settings is not None:
        wrong = problems(settings.options(), listens=False)
        if settings.max_replicas is not None and settings.max_replicas < settings.replicas:
            wrong.append(f"max_replicas is {settings.max_replicas}, and replicas {settings.replicas}")
        if settings.target is not None and settings.max_replicas is None:
            wrong.append("target is of max_replicas: without that the number of replicas does not change")
    if wrong or settings is None:
        raise ValueError("the application cannot start:\n  " + "\n  ".join(wrong))
    return settings
