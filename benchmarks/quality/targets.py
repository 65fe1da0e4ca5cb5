"""The project's targets and the comparison at equal bytes, from a suite's cells."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.quality.peers import PEERS
from benchmarks.quality.rows import at, line, share_for
from benchmarks.quality.style import label
from benchmarks.quality.suite import OURS

SIZES = (0.001, 0.0017, 0.0025, 0.005, 0.01, 0.02, 0.04)  # of fp32, 0.1 % to 4 %
BYTES = "bytes of one fine-tune on disk, % of fp32"  # what they are shares of, in plots
ADR, ADR_SIZE = 0.001, 0.005
RATIO = 0.5
VARIANTS = ("residual frobenius", "residual uniform")  # ours to compare with, not to use
PAPER, ULTRADELTA = "dts paper", "ultradelta"


@dataclass(frozen=True)
class Check:
    """met: None where nothing was measured that could tell;  complete: whether every size it is about was measured."""

    target: str
    method: str
    met: bool | None
    figures: str
    complete: bool = True

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "– not measured"
        return "✘ not met" if not self.met else "✔ met" if self.complete else "◐ met where measured"


def ours(cells: list[dict]) -> list[str]:
    """This project's methods: all that are not peers, `VARIANTS` last."""
    found = dict.fromkeys(cell["method"] for cell in cells if cell["method"] not in PEERS)
    known = list(OURS)
    place = {method: known.index(method) if method in known else len(known) for method in found}
    return sorted(found, key=lambda method: (method in VARIANTS, place[method]))


def palette(cells: list[dict]) -> list[str]:
    """This project's methods in the order of their colours: all that there are, measured or not, so that each has the
    same in every suite; then what else is found."""
    return [*OURS, *(method for method in ours(cells) if method not in OURS)]


def peers(cells: list[dict]) -> list[str]:
    return list(dict.fromkeys(cell["method"] for cell in cells if cell["method"] in PEERS))


def best_peer(cells: list[dict], share: float) -> tuple[str, float] | None:
    """(name, KL) of the peer with the least KL at ``share``, between its sizes as `rows.at` says."""
    found = [(kl, peer) for peer in peers(cells) if (kl := at(line(cells, peer), share)) is not None]
    return min(found)[::-1] if found else None


def relative(cells: list[dict]) -> list[dict]:
    """A row each of our methods' measured sizes: its KL, the paper's and the best peer's at those bytes, and ratios."""
    table = []
    for method in ours(cells):
        for share, kl in line(cells, method):
            best, paper = best_peer(cells, share), at(line(cells, PAPER), share)
            table.append(
                {
                    "method": method,
                    "share": share,
                    "kl": kl,
                    "best_peer": best and best[0],
                    "peer_kl": best and best[1],
                    "ratio": kl / best[1] if best and best[1] else None,
                    "paper_kl": paper,
                    "paper_ratio": kl / paper if paper else None,
                }
            )
    return table


def checks(cells: list[dict]) -> list[Check]:
    """Every target for every one of our methods."""
    return [
        check
        for method in ours(cells)
        for check in (
            _drop(cells, method),
            _against(
                cells,
                method,
                f"KL at most {RATIO:g} of the paper's DTS from 0.1 % to 4 %",
                lambda share: (PAPER, at(line(cells, PAPER), share)),
            ),
            _against(
                cells,
                method,
                f"KL at most {RATIO:g} of every peer's from 0.1 % to 4 %",
                lambda share: best_peer(cells, share) or ("", None),
            ),
            _ultradelta(cells, method),
        )
    ]


def _drop(cells: list[dict], method: str) -> Check:
    target = f"accuracy drop at most {100 * ADR:g} % at {100 * ADR_SIZE:g} % of fp32"
    value = at(line(cells, method, "adr"), ADR_SIZE, logarithmic=False)
    if value is None:
        return Check(target, method, None, "not measured at that size")
    return Check(target, method, value <= ADR, f"{100 * value:.3f} %")


def _against(cells: list[dict], method: str, target: str, peer_at) -> Check:
    """peer_at(share) -> (peer, KL or None)."""
    own, figures, met, complete = line(cells, method), [], [], True
    for share in SIZES:
        kl, (name, other) = at(own, share), peer_at(share)
        if kl is None or share > 1.05 * own[-1][0]:
            figures.append(f"{100 * share:g} %: not measured")
            complete = False
        elif other is None:
            figures.append(f"{100 * share:g} %: no peer so small")
        else:
            met.append(kl <= RATIO * other)
            figures.append(f"{100 * share:g} %: {kl / other:.2f}" + (f" ({label(name)})" if name != PAPER else ""))
    return Check(target, method, all(met) if met else None, ", ".join(figures), complete)


def _ultradelta(cells: list[dict], method: str) -> Check:
    target = f"UltraDelta's KL at {RATIO:g} of its bytes or fewer"
    figures, met, complete = [], [], True
    for share, kl in line(cells, ULTRADELTA):
        found = share_for(line(cells, method), kl)
        if found is None:
            met.append(False)
            figures.append(f"its {100 * share:.2g} %: not reached")
            continue
        ratio, less = found[0] / share, found[1]
        if less and ratio > RATIO:  # the smallest size is already better: how much fewer bytes would do is not known
            figures.append(f"its {100 * share:.2g} %: ≤ {ratio:.2f}, our smallest size")
            complete = False
            continue
        met.append(ratio <= RATIO)
        figures.append(f"its {100 * share:.2g} %: {'≤ ' if less else ''}{ratio:.2f}")
    return Check(target, method, all(met) if met else None, ", ".join(figures) or "not measured", complete)
