"""A launcher on the CPU that computes with PyTorch what the kernels of components compute, as on a card."""

import torch
from torch.utils._python_dispatch import _disable_current_modes

from benchmarks.kernels import host
from dts_kernels import contents, reference
from dts_kernels.arena import pieces
from tests.dts_kernels.gpu.beside import Late


class Computing(Late, host.Nothing):
    """order: kernels in their order;  captured: as if a graph were captured, which launches only what is loaded."""

    def __init__(self):
        self.order, self.loaded = [], set()

    def stream(self, index):
        return None

    def prepare(self, call):
        self.loaded.add(self._kernel(call))

    def launch(self, call):
        assert not self.captured or self._kernel(call) in self.loaded, f"{call.kernel.fn.__name__} is not loaded"
        self.loaded.add(self._kernel(call))
        super().launch(call)

    @staticmethod
    def _kernel(call):
        return call.kernel.fn.__name__, *sorted(call.constants.items()), *sorted(call.options.items())

    def now(self, call):
        self.order.append(call.kernel.fn.__name__)
        given = dict(zip(call.kernel.arg_names, (*call.pointers, *call.sizes))) | call.constants
        with _disable_current_modes():  # nobody sees what a kernel does
            getattr(self, call.kernel.fn.__name__)(given)

    def shrink(self, given):
        parts = given["t"]
        parts.zero_()[0] = _shrunk(given, "")

    def shrink_together(self, given):
        each = [_shrunk(given, end) for end in ("", "_1", "_2")[: given["MATRICES"]]]
        given["t"].zero_()[0] = torch.cat([t.flatten() for t in each])

    def combine_parts(self, given):
        given["t"].view(-1).copy_(given["parts"].flatten(1).sum(0))

    def expand(self, given):
        t, out = given["t"].sum(0).double(), given["out"]
        assert given["y"] is out and not given["ADDS"]
        delta, known = torch.zeros(out.shape, dtype=torch.float64), _factors(given, "", given["out_features"], 1)
        for row, place, slot in _rows(given):
            if slot in known:
                u = known[slot][0]
                delta[row] += t[place, row, : u.shape[1]] @ u.T
        out += delta.to(out.dtype)


def _rows(given):
    """(row, place, slot)"""
    for row in range(given["rows"]):
        for place, slot in enumerate(given["slots"][row // given["per_entry"]].tolist()):
            yield row, place, slot


_decoded = {}  # table, shape -> (what was read, the factors)


def _factors(given, end, m, n):
    """slot -> (u, v, sigma), float64, as the memory is now; decoded again where it is another than before."""
    packed, table = [given["words" + end], given["scalars" + end]], given["table" + end]
    read = [table, *[piece for anchor in packed for _, piece in pieces(anchor)]]
    before, found = _decoded.get((table.data_ptr(), m, n), ([], {}))
    if len(before) != len(read) or not all(map(torch.equal, before, read)):
        known = contents.factors_of(packed, table, n, m)[0]
        found = {
            slot: (*reference.factor_values(one, torch.float64), one.sigma.double()) for slot, one in known.items()
        }
        _decoded[table.data_ptr(), m, n] = [one.clone() for one in read], found
    return found


def _shrunk(given, end):
    """[places, rows, width]"""
    t = torch.zeros(given["places"], given["rows"], given["width" + end], dtype=torch.float64)
    known = _factors(given, end, 1, given["in_features"])
    for row, place, slot in _rows(given):
        if slot in known:
            _, v, sigma = known[slot]
            gamma = given["weights"][row // given["per_entry"], place].item()
            t[place, row, : v.shape[1]] = given["x"][row].double() @ v * sigma * gamma
    return t
