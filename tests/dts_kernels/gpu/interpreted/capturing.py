"""The interpreter as if a CUDA graph were captured."""

import weakref

from dts_kernels.gpu import launch


class Aside:
    """What runs beside: as late as a card may run it, when it is joined, from memory that somebody still holds."""

    def __init__(self, launcher, name):
        self.launcher, self.name, self.calls = launcher, name, []
        launcher.order.append(f"fork {name}")

    def __enter__(self):
        assert self.launcher.inside is None
        self.launcher.inside = self

    def __exit__(self, *raised):
        self.launcher.inside = None

    def join(self):
        self.launcher.order.append(f"join {self.name}")
        for call, pointers in self.calls:
            held = tuple(pointer() for pointer in pointers)
            assert all(tensor is not None for tensor in held), "freed while it is used beside"
            self.launcher.now(call._replace(pointers=held))


class Capturing(launch.Launcher):
    """The interpreter as if a CUDA graph were captured.  order: what was forked, launched and joined."""

    def __init__(self):
        self.order, self.inside, self.captured = [], None, True

    def captures(self, index):
        return self.captured

    def beside(self, index, name):
        return Aside(self, name)

    def launch(self, call):
        if self.inside is None:
            return self.now(call)
        self.inside.calls.append((call._replace(pointers=()), [weakref.ref(t) for t in call.pointers]))

    def now(self, call):
        self.order.append(call.kernel.fn.__name__)
        return super().launch(call)
