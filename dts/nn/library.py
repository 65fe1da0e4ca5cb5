"""What `DTSModel` needs of the library that its base model is from; `dts.integrations` has those of each library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from dts.adapter import Adapter
from dts.nn.base import Base
from dts.services import service


class Library(Protocol):
    """A module, or any object, with these functions."""

    def load_base(self, path: str | Path, adapters: Sequence[Adapter], **options: Any) -> tuple[nn.Module, Base]:
        """The base model of a folder or hub id, in eval mode, ready for the adapters, and what it was made from."""

    def empty_base(self, path: str | Path, adapters: Sequence[Adapter], **options: Any) -> tuple[nn.Module, Base]:
        """What `load_base` gives with every tensor on the meta device: nothing is read but configs."""

    def knows(self, model: nn.Module) -> bool:
        """Whether it is a model of this library, whose code looks at a model's class."""

    def update_config(self, model: nn.Module, resized: Mapping[str, tuple[int, int]], given: Mapping[str, Any]) -> None:
        """What else of a model changes after a task was written into its weights; of any other model: nothing.

        resized: layer -> (rows before, now);  given: the fine-tune's own config, for what sizes do not tell.
        """

    def task_config(
        self, model: nn.Module, resized: Mapping[str, tuple[int, int]], given: Mapping[str, Any], unnamed: bool = False
    ) -> tuple[Any, set[str]]:
        """The config of a model while a task is set, and the fields of it that are the task's own.

        resized, given: as for `update_config`;  unnamed: the tasks that are mixed name their classes differently.
        """

    def sized_config(self, config: Any, labels: int | None = None, vocabulary: int | None = None) -> Any:
        """A copy of a config with so many classes, and ids in its vocabulary."""


def library() -> Library:
    """The one that is known."""
    return service("library")
