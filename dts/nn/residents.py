"""Which tasks are in memory: loaded when they are asked for; where there is no room the least recently used go."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Protocol


class NoRoom(ValueError):
    """Tasks that are asked for together, with those that must stay, take more memory than is allowed."""


class Store(Protocol):
    """What loads and drops: a model, or whoever has one."""

    def size_of(self, name: str) -> int:
        """Bytes that a task will take, from what is known before it is loaded; raises what makes it unusable."""

    def bring(self, name: str) -> int:
        """Load a task; the bytes that it takes."""

    def let_go(self, name: str) -> None:
        """Take a task out of memory."""


class Residents:
    """The tasks in memory, their bytes, and which of them may go.

    Any thread may ask.  A task never goes while it is in use (`using`), chosen (`keep`) or pinned.  What is asked for
    together is admitted together, all of it or none, and who waits holds nothing: so nobody waits for one that waits
    for him.  Nothing is loaded or dropped under the lock: a load may wait for calls that are under way, and those end
    with it.

    limit: bytes of tasks, None: no bound;  pinned: tasks that never go.
    """

    def __init__(self, limit: int | None = None, pinned: Collection[str] = ()):
        self.limit, self.pinned = limit, set(pinned)
        self.loaded: OrderedDict[str, int] = OrderedDict()  # name -> bytes, the least recently used first
        self._chosen: set[str] = set()
        self._users: dict[int, Counter[str]] = {}  # thread -> how often it is using each task
        self._moving: dict[str, int] = {}  # tasks that some thread loads or drops just now, with their bytes
        self._alone: int | None = None  # the thread in `still`
        self._changed = threading.Condition()

    def __getstate__(self) -> dict:
        """A copy has nobody in it."""
        return vars(self) | {"_users": {}, "_moving": {}, "_alone": None, "_changed": None}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._changed = threading.Condition()

    @property
    def nbytes(self) -> int:
        with self._changed:
            return sum(self.loaded.values()) + sum(self._moving.values())

    def pin(self, name: str) -> None:
        with self._changed:
            self.pinned.add(name)

    def unpin(self, name: str) -> None:
        with self._changed:
            self.pinned.discard(name)
            self._changed.notify_all()

    def keep(self, names: Collection[str]) -> None:
        """These stay until others are kept: what is chosen for calls that name no tasks."""
        with self._changed:
            self._chosen = set(names)
            self._changed.notify_all()

    def forget(self, name: str) -> bool:
        """A task is to be deleted, which no other thread loads or drops; False where it was not in memory."""
        with self._changed:
            while name in self._moving:
                self._changed.wait()
            self.pinned.discard(name)
            self._chosen.discard(name)
            self._changed.notify_all()
            return self.loaded.pop(name, None) is not None

    @contextmanager
    def using(self, names: Collection[str], store: Store, may_load: Callable[[], None] | None = None) -> Iterator[None]:
        """These tasks are in memory together, and stay as long as this lasts.

        may_load: raises where this thread cannot load now.  Raises NoRoom, and what ``store`` raises.
        """
        wanted = list(dict.fromkeys(names))
        thread = threading.get_ident()
        self._admit(wanted, store, may_load)
        try:
            yield
        finally:
            with self._changed:
                self._leave(wanted, thread)

    @contextmanager
    def still(self) -> Iterator[None]:
        """No other thread loads or drops a task meanwhile: it waits."""
        with self._changed:
            while self._moving or self._alone is not None:
                self._changed.wait()
            self._alone = threading.get_ident()
        try:
            yield
        finally:
            with self._changed:
                self._alone = None
                self._changed.notify_all()

    def ensure(self, names: Collection[str], store: Store, beside: Collection[str] = ()) -> None:
        """Have these in memory together with those of ``beside`` that are; they may go again at any time."""
        with self._changed:
            there = [name for name in dict.fromkeys(beside) if name in self.loaded and name not in names]
        with self.using([*names, *there], store):
            pass

    def check(self, names: Collection[str], store: Store) -> None:
        """Raises NoRoom where these cannot be in memory together, whatever else that may go went."""
        wanted = list(dict.fromkeys(names))
        with self._changed:
            absent = [name for name in wanted if name not in self.loaded]
        sizes = {name: store.size_of(name) for name in absent}
        with self._changed:
            missing = {name: size for name, size in sizes.items() if name not in self.loaded}
            self._refuse_more(wanted, missing, self._staying(wanted))

    def reload(self, name: str, store: Store, beside: Collection[str] = ()) -> None:
        """Load, or load again what is in memory: its new bytes must fit beside what stays, and those of ``beside``."""
        with self._changed:
            while name in self._moving:
                self._changed.wait()
            old = self.loaded.pop(name, None)
        try:
            self.ensure([name], store, beside)
        except BaseException:
            with self._changed:
                if old is not None and name not in self.loaded:  # the model goes on with the old one
                    self.loaded[name] = old
            raise

    # ---- inside ------------------------------------------------------------------------------------------------

    def _admit(self, wanted: list[str], store: Store, may_load: Callable[[], None] | None) -> None:
        sizes: dict[str, int] = {}
        while True:
            with self._changed:
                missing = [name for name in wanted if name not in self.loaded]
                if not missing:
                    self._take(wanted)
                    return
            if may_load is not None:
                may_load()
            sizes |= {name: store.size_of(name) for name in missing if name not in sizes}
            with self._changed:
                missing = [name for name in wanted if name not in self.loaded]
                if any(name not in sizes for name in missing):  # one that was there is gone meanwhile
                    continue
                going = self._going(wanted, {name: sizes[name] for name in missing})
                if going is None:
                    self._changed.wait()
                    continue
                for name in going:
                    self._moving[name] = self.loaded.pop(name)
                for name in missing:
                    self._moving[name] = sizes[name]
                self._take(wanted)
            self._move(wanted, missing, going, store)
            return

    def _take(self, wanted: list[str]) -> None:
        self._users.setdefault(threading.get_ident(), Counter()).update(wanted)
        for name in wanted:
            if name in self.loaded:
                self.loaded.move_to_end(name)

    def _leave(self, wanted: list[str], thread: int) -> None:
        self._users[thread] = left = self._users[thread] - Counter(wanted)  # without zeros
        if not left:
            del self._users[thread]
        self._changed.notify_all()

    def _going(self, wanted: list[str], missing: dict[str, int]) -> list[str] | None:
        """Which tasks make room for those that are missing; None: some are in use or on their way, wait for them."""
        if any(name in self._moving for name in wanted) or self._alone not in (None, threading.get_ident()):
            return None
        if self.limit is None:
            return []
        own = self._users.get(threading.get_ident(), ())
        stay = self._staying([*wanted, *own])
        self._refuse_more(wanted, missing, stay)
        used = {name for counts in self._users.values() for name in counts}
        free = self.limit - sum(self.loaded.values()) - sum(self._moving.values()) - sum(missing.values())
        going: list[str] = []
        for name, size in self.loaded.items():
            if free >= 0:
                break
            if name not in stay and name not in used:
                going.append(name)
                free += size
        if free >= 0:
            return going
        if own and not self._moving:  # two that hold something and wait for each other would wait for ever
            raise NoRoom(
                self._words(wanted, missing, stay) + f": the rest of the {self.limit} bytes that are allowed is in use "
                "by other threads; a thread that is using a task already does not wait for them"
            )
        return None

    def _staying(self, names: Collection[str]) -> set[str]:
        """Those in memory that do not go, with those of ``names`` that are there."""
        stay = {*self.pinned, *self._chosen, *names}
        return {name for name in self.loaded if name in stay}

    def _refuse_more(self, wanted: list[str], missing: dict[str, int], stay: set[str]) -> None:
        """Raises NoRoom where what is to be loaded and what stays take more than is allowed."""
        least = sum(missing.values()) + sum(self.loaded[name] for name in stay)
        if self.limit is not None and least > self.limit:
            words = self._words(wanted, missing, stay)
            raise NoRoom(f"{words}: that takes {least} bytes, and {self.limit} are allowed")

    def _words(self, wanted: list[str], missing: dict[str, int], stay: set[str]) -> str:
        beside = sorted(stay - set(wanted))
        size = sum(missing.values()) + sum(self.loaded[name] for name in stay if name in wanted)
        one = len(wanted) == 1
        return (
            f"the adapter{'' if one else 's'} {repr(wanted[0]) if one else sorted(wanted)} ({size} bytes of memory) "
            f"{'does' if one else 'do'} not fit beside {beside or 'nothing'}"
        )

    def _move(self, wanted: list[str], missing: list[str], going: list[str], store: Store) -> None:
        """Drop, then load; what was not reached is as it was before, or gone."""
        left = [*going, *missing]
        try:
            for name in going:
                store.let_go(name)
                self._moved(name)
                left.remove(name)
            for name in missing:
                took = store.bring(name)
                with self._changed:
                    self.loaded[name] = took
                self._moved(name)
                left.remove(name)
        except BaseException:
            with self._changed:
                for name in left:
                    size = self._moving.pop(name)
                    if name in going:  # it was not let go
                        self.loaded[name] = size
                self._leave(wanted, threading.get_ident())
            raise

    def _moved(self, name: str) -> None:
        with self._changed:
            del self._moving[name]
            self._changed.notify_all()
