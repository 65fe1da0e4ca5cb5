"""Launchers as if a CUDA graph were captured: what runs beside does so as late as a card may run it."""

import weakref


class Aside:
    """What runs beside: run when it is joined, from memory that somebody still holds."""

    def __init__(self, launcher, name):
        self.launcher, self.name, self.calls = launcher, name, []
        launcher.note(f"fork {name}")

    def __enter__(self):
        assert self.launcher.inside is None
        self.launcher.inside = self

    def __exit__(self, *raised):
        self.launcher.inside = None

    def join(self):
        self.launcher.note(f"join {self.name}")
        for call, pointers in self.calls:
            held = tuple(pointer() for pointer in pointers)
            assert all(tensor is not None for tensor in held), "freed while it is used beside"
            self.launcher.now(call._replace(pointers=held))


class Late:
    """Of a launcher, which has ``now(call)``.  captured: whether a graph is."""

    inside, captured = None, False

    def captures(self, index):
        return self.captured

    def beside(self, index, name):
        return Aside(self, name)

    def launch(self, call):
        if self.inside is None:
            return self.now(call)
        self.inside.calls.append((call._replace(pointers=()), [weakref.ref(t) for t in call.pointers]))

    def note(self, what):
        """What was forked and joined."""
