"""Tasks of a model that lie on disk until a call asks for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from dts.adapter import Adapter
from dts.adapter.adapter import alone, load_same
from dts.adapter.digests import identity
from dts.adapter.folder import read_layout
from dts.files import expanded
from dts.nn.residents import Residents
from dts.nn.sizes import bytes_of, task_bytes


@dataclass(frozen=True)
class Source:
    """folder: of the adapter, the same one whatever the current folder is when it is read;  nbytes: that it will take
    in memory;  prefix: take so much of it only, see `Adapter.load`;  heads: as for `DTSModel.load_task`;
    digest: `Adapter.digest`, by which another adapter in its place is known; None: whatever is there."""

    folder: Path
    nbytes: int
    prefix: float | None = None
    heads: bool = True
    digest: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", expanded(self.folder).absolute())

    @classmethod
    def of(cls, folder: Path, heads: bool = True) -> Source:
        """Of what lies there now; raises AdapterError."""
        config, stored = read_layout(folder)
        return cls(folder, task_bytes(config, stored), None, heads, identity(config))

    def load(self, name: str) -> Adapter:
        """Raises AdapterError, also where it is not the adapter any more that it was."""
        if self.digest is None:
            adapter = Adapter.load(self.folder)
        else:
            adapter = load_same(self.folder, self.digest, f"load_task({name!r}, ...) takes the new one")
        return adapter if self.prefix is None else alone(adapter.truncate(budget=self.prefix, again=False))


class Loads(Protocol):
    """What a shelf asks of its model."""

    def _load(self, name: str, adapter: Adapter, heads: bool) -> None: ...
    def _delete(self, name: str) -> None: ...
    def forget_adapter(self, name: str, again: Callable[[], Adapter] | None = None) -> None: ...
    def _may_load(self) -> None: ...


class Shelf:
    """The tasks that a model may be asked for, and which of them are in memory (`Residents`).

    sources: name -> where it is;  limit: bytes of tasks in memory;  pinned: names that stay there.
    """

    def __init__(
        self, model: Loads, sources: Mapping[str, Source], limit: int | None = None, pinned: Collection[str] = ()
    ):
        self.model = model
        self.sources = dict(sources)
        self.residents = Residents(limit, pinned)
        self.choosing = threading.RLock()  # what is chosen and what is kept for it change together

    def __getstate__(self) -> dict:
        return vars(self) | {"choosing": None}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.choosing = threading.RLock()

    def check(self, names: Collection[str]) -> None:
        """Raises ValueError that lists the names that are no task."""
        unknown = sorted({repr(name) for name in names if not isinstance(name, str) or name not in self.sources})
        if unknown:
            raise ValueError(f"no task {', '.join(unknown)}; the tasks are {list(self.sources)}")

    @property
    def on_disk(self) -> list[str]:
        return [name for name in self.sources if name not in self.residents.loaded]

    @contextmanager
    def using(self, names: Collection[str]) -> Iterator[None]:
        """These tasks are in memory meanwhile.  Raises NoRoom where they never fit together, RuntimeError where one
        would have to be loaded within a call of the model."""
        self.check(names)
        with self.residents.using(names, self, self.model._may_load):
            yield

    def prefetch(self, names: Collection[str]) -> Future[None]:
        """Loads tasks in a thread of its own."""
        self.check(names)
        done: Future[None] = Future()

        def run() -> None:
            try:
                self.residents.ensure(names, self)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        threading.Thread(target=run, name="dts-prefetch", daemon=True).start()
        return done

    def pin(self, name: str) -> None:
        """In memory from now on."""
        with self.using([name]):
            self.residents.pin(name)

    def put(self, name: str, source: Source) -> None:
        """A task more, or another one of a name; it is loaded."""
        before = self.sources.get(name)
        self.sources[name] = source
        try:
            self.residents.reload(name, self)
        except BaseException:
            if before is None:
                self.sources.pop(name, None)  # another thread may have deleted it meanwhile
            else:
                self.sources[name] = before
            raise

    def remove(self, name: str) -> None:
        """A task is not asked for any more."""
        self.check([name])
        self.model._may_load()  # a thread that loads this waits for calls to end
        self.sources.pop(name, None)  # first: nobody brings it again then
        if self.residents.forget(name):
            self.model._delete(name)

    def clear(self) -> None:
        """There are no tasks any more: who waits for one is told so."""
        self.sources.clear()

    # ---- `dts.nn.residents.Store` ------------------------------------------------------------------------------

    def size_of(self, name: str) -> int:
        return self._source(name).nbytes

    def bring(self, name: str) -> int:
        source = self._source(name)
        adapter = source.load(name)
        self.model._load(name, adapter, source.heads)
        self.model.forget_adapter(name, partial(source.load, name))
        return bytes_of(adapter)

    def let_go(self, name: str) -> None:
        self.model._delete(name)

    def _source(self, name: str) -> Source:
        source = self.sources.get(name)  # another thread may delete it at any time
        if source is None:
            self.check([name])
            raise ValueError(f"no task {name!r} any more")
        return source
