"""Which adapters are loaded, and in which slot: those used least recently make room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from dts.adapter import Adapter
from dts.sites import Target, resolve
from dts.vllm.packed.layers import Delta, Place


class Tasks:
    """places: names of a checkpoint's tensors -> where they are;  rename: a name on disk as those names are;
    room: how many adapters at once.  Numbers are vLLM's own of the tasks."""

    def __init__(self, places: Mapping[str, Place], rename: Callable[[str], str], room: int):
        self.places, self.rename, self.room = places, rename, room
        self.deltas: list[Delta] = list({id(place.delta): place.delta for place in places.values()}.values())
        self._slots: OrderedDict[int, int] = OrderedDict()  # number -> slot, the least recently used first
        self._pinned: set[int] = set()

    @property
    def numbers(self) -> set[int]:
        return set(self._slots)

    def slot(self, number: int) -> int:
        """-1 for 0, which is the base."""
        return self._slots[number] if number else -1

    def touch(self, number: int) -> None:
        self._slots.move_to_end(number)

    def pin(self, number: int) -> None:
        self._pinned.add(number)

    def reserve(self, number: int, keep: Iterable[int] = ()) -> int:
        """An empty slot for a number, that of the least recently used where there is none but for ``keep``.

        Raises ValueError where all are kept or pinned.
        """
        if number not in self._slots and len(self._slots) >= self.room:
            kept = self._pinned | set(keep)
            oldest = next((one for one in self._slots if one not in kept), None)
            if oldest is None:
                raise ValueError(f"all {self.room} tasks are in use or pinned: --max-cpu-loras says how many there are")
            self.remove(oldest)
        slot = self._slots.get(number)
        if slot is None:
            slot = min(set(range(self.room)) - set(self._slots.values()))
        self._slots[number] = slot
        self.touch(number)
        return slot

    def load(self, number: int, adapter: Adapter, keep: Iterable[int] = ()) -> None:
        """Put an adapter's entries where they belong, in place of what the number was before.

        Raises ValueError that lists every tensor without a place, with nothing changed.
        """
        found = self.fit(adapter)
        slot = self.reserve(number, keep)
        self._empty(slot)
        try:
            for name, place in found.items():
                place.add(slot, adapter.entries[name])
        except BaseException:
            self.remove(number)
            raise

    def fit(self, adapter: Adapter) -> dict[str, Place]:
        """The place of every entry that changes something."""
        wrong: list[str] = []
        own = {name: entry for name, entry in adapter.entries.items() if entry.kind != "tied"}
        targets = resolve(own, self.places, lambda name: Target(self.rename(name)), wrong)
        found = {name: self.places[target.name] for name, target in targets.items()}
        taken: dict[tuple[int, str, int], str] = {}
        for name, place in found.items():
            if why := place.misfit(own[name]):
                wrong.append(f"{name}: {why}")
            other = taken.setdefault((id(place.delta), place.parameter, place.at), name)
            if other != name:
                wrong.append(f"{name}: it is {other} in the model, which the fine-tune has apart")
        for name, entry in adapter.entries.items():
            tied, owner = self.places.get(self.rename(name)), found.get(entry.tied_to or "")
            if entry.kind == "tied" and tied is not None and owner is not None and tied.delta is not owner.delta:
                wrong.append(f"{name}: tied to {entry.tied_to} in the fine-tune, and not in the model")
        if wrong:
            raise ValueError(f"the adapter {adapter.name!r} does not fit vLLM's model:\n  " + "\n  ".join(wrong))
        return found

    def remove(self, number: int) -> bool:
        slot = self._slots.pop(number, None)
        self._pinned.discard(number)
        if slot is not None:
            self._empty(slot)
        return slot is not None

    def clear(self) -> None:
        for number in list(self._slots):
            self.remove(number)

    def _empty(self, slot: int) -> None:
        for delta in self.deltas:
            if slot in delta.slots:
                delta.remove(slot)

    @property
    def nbytes(self) -> int:
        """Of all memory that the loaded tasks hold, each piece of it once."""
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for d in self.deltas for t in d.held()}
        return sum(held.values())
