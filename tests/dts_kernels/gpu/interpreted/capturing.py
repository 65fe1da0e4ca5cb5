"""The interpreter as if a CUDA graph were captured."""

from dts_kernels.gpu import launch
from tests.dts_kernels.gpu.beside import Late


class Capturing(Late, launch.Launcher):
    """The interpreter as if a CUDA graph were captured.  order: what was forked, launched and joined."""

    def __init__(self):
        self.order, self.captured = [], True

    def note(self, what):
        self.order.append(what)

    def now(self, call):
        self.order.append(call.kernel.fn.__name__)
        return launch.Launcher.launch(self, call)
