"""Measure methods x sizes x fine-tunes of one suite, into a file of JSON lines that an interrupted run continues.

A row holds: suite, task, seed (of the fine-tune), draw (of the method's randomness), method, size (asked, share of the
matrices' fp32 bytes; null where the method has its own), share (got), published_share (as the method's paper counts),
shared (share kept once for all tasks), accuracy, finetuned_accuracy, adr, agreement, kl (nats), squared_error,
seconds (to encode), processor (which trained the fine-tune too, as caches are not moved; older rows do not say); of a
language model also loss, finetuned_loss and base_loss.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import dts.codec
from benchmarks.quality.peers import ABLATIONS, PEERS, SIZES, Deltas, Encoded, Peer, fp32_bits
from dts import metrics, sums
from dts.adapter.budget import Curve, allocate, levelled
from dts.adapter.matrix import Matrix
from dts.adapter.sizes import HEADER_BYTES
from dts.cli.doctor import cpu_name
from dts.codec.methods import method_of


@dataclass
class Subject(ABC):
    """One fine-tune: its matrices' deltas, and how to score the model with any others in their place.

    identity: changes whenever the fine-tune does.
    """

    task: str
    seed: int
    identity: str
    deltas: Deltas

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many test samples it is measured on."""

    @abstractmethod
    def score(self, deltas: Deltas) -> dict:
        """accuracy, finetuned_accuracy, agreement and kl of base + deltas, everything else the fine-tune's; a suite
        may add OPTIONAL_MEANS."""


@dataclass
class Classifier(Subject):
    """forward(deltas): logits [N, classes] of base + deltas; labels: int64 [N]."""

    forward: Callable[[Deltas], Tensor]
    labels: Tensor

    @property
    def samples(self) -> int:
        return len(self.labels)

    @cached_property
    def reference(self) -> Tensor:
        return self.forward(self.deltas)

    def score(self, deltas: Deltas) -> dict:
        logits = self.forward(deltas)
        accuracy, finetuned = ((x.argmax(-1) == self.labels).double().mean().item() for x in (logits, self.reference))
        return {
            "accuracy": accuracy,
            "finetuned_accuracy": finetuned,
            "agreement": metrics.agreement(logits, self.reference),
            "kl": metrics.kl(logits, self.reference),
        }


def matrix_deltas(bases: dict[str, Tensor], finetuned: dict[str, Tensor]) -> Deltas:
    """From two state dicts: the deltas [out, rest] of the matrices and convolutions of the base that changed."""
    return {
        name: (tensor - bases[name]).flatten(1)
        for name, tensor in finetuned.items()
        if name in bases and tensor.dim() in (2, 4) and not torch.equal(tensor, bases[name])
    }


def residual(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """What `dts.compress(budget=)` does with the matrices: ranks by `dts.adapter.budget` over the whole model."""
    return [_encoded(deltas, _budgeted_ranks(deltas, fraction), seed) for deltas in tasks]


def sketched(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """What `dts.compress(budget=, method="sketch")` does with the matrices: the same budget, most of it for samples."""
    return [_encoded(d, _budgeted_ranks(d, fraction, method="sketch"), seed, "sketch") for d in tasks]


def residual_frobenius(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """The same codec with a budget of plain squared errors, over all matrices together."""
    return [_encoded(deltas, _budgeted_ranks(deltas, fraction, level=False), seed) for deltas in tasks]


def residual_uniform(tasks: list[Deltas], fraction: float, seed: int) -> list[Encoded]:
    """The same codec with one rank fraction for all matrices."""
    return [_encoded(deltas, _uniform_ranks(deltas, fraction), seed) for deltas in tasks]


def _encoded(deltas: Deltas, ranks: dict[str, int], seed: int, method: str = "residual") -> Encoded:
    result, bits = {}, 0
    for name, delta in deltas.items():
        result[name] = torch.zeros_like(delta)
        if ranks[name]:
            matrix = _measured(delta, name)
            own, rows = matrix.method(method_of(method)).name, matrix.kept(ranks[name], method_of(method)).rows
            kept = slice(None) if rows is None else rows
            factors = dts.codec.compress_tensor(delta[kept], own, rank=ranks[name], name=name, seed=seed)
            result[name][kept] = factors.reconstruct()
            bits += 8 * (factors if rows is None else factors.of_rows(rows, len(delta))).nbytes
    return Encoded(result, bits, bits)


def _budgeted_ranks(deltas: Deltas, fraction: float, level: bool = True, method: str = "residual") -> dict[str, int]:
    curves = [_curve(delta, name, method) for name, delta in deltas.items()]
    if level:
        matrices = [_measured(delta, name) for name, delta in deltas.items()]
        counts = [m.counts(fraction) for m in matrices]
        curves = levelled(curves, [m.elements for m in matrices], counts)
    return dict(zip(deltas, allocate(curves, fraction * fp32_bits(deltas) / 8)))


@lru_cache(maxsize=512)
def _measured(delta: Tensor, name: str) -> Matrix:  # tensors hash by identity
    return Matrix.of(delta, name, spectrum=True)


def _curve(delta: Tensor, name: str, method: str) -> Curve:
    """Bytes without headers, which no method's bytes hold."""
    curve = _measured(delta, name).curve(method_of(method))
    return replace(curve, bytes=curve.bytes - np.where(curve.ranks > 0, HEADER_BYTES, 0))


def _uniform_ranks(deltas: Deltas, fraction: float) -> dict[str, int]:
    """rank = r min(m, n) with the largest r that fits; a component costs ceil(k / 4) (m + n) + 4 k bytes."""
    allowed, r = fraction * fp32_bits(deltas) / 8, 4.0

    def ranks(r: float) -> dict[str, int]:
        return {name: max(1, int(r * min(delta.shape))) for name, delta in deltas.items()}

    def nbytes(ranks: dict[str, int]) -> int:
        return sum(math.ceil(k / 4) * sum(deltas[name].shape) + 4 * k for name, k in ranks.items())

    while nbytes(ranks(r)) > allowed and r > 1e-4:
        r *= 0.995
    return ranks(r)


OURS: dict[str, Peer] = {
    "residual": Peer(residual, SIZES, "this project"),
    "sketch": Peer(sketched, SIZES, "this project, three quarters of the bytes for an unbiased sample"),
    "residual frobenius": Peer(residual_frobenius, SIZES, "this project, a budget of plain squared errors"),
    "residual uniform": Peer(residual_uniform, ABLATIONS, "this project, no budget over layers"),
}
METHODS: dict[str, Peer] = OURS | PEERS


def codec_digest() -> str:
    """Changes whenever the source of the codec, or of the budget over layers, does."""
    root = Path(dts.codec.__file__).parents[1]
    files = [*sorted((root / "codec").rglob("*.py")), root / "adapter" / "budget.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def measure(
    suite: str,
    subjects: list[Subject],
    path: Path,
    methods: Iterable[str],
    sizes: Iterable[float] | None = None,
    draws: Iterable[int] = (0,),
) -> list[dict]:
    """The rows of every method at every size (default: the method's own sizes), measured or found in `path`.

    All methods see the same subjects; those with `whole_suite` see all tasks of one seed at once.
    """
    known = {row["key"]: row for row in read(path)}
    rows = []
    for method in methods:
        peer = METHODS[method]
        own = method in OURS
        for size in (None,) if peer.sizes is None else sizes or peer.sizes:
            for draw in draws:
                for group in _groups(subjects, peer.whole_suite):
                    names = [s.identity for s in group] if peer.whole_suite else []
                    keys = [
                        json.dumps([suite, method, size, draw, s.identity, s.samples, names, own and codec_digest()])
                        for s in group
                    ]
                    if any(key not in known for key in keys):
                        start = time.perf_counter()
                        encoded = peer.encode([s.deltas for s in group], size, draw)
                        seconds = (time.perf_counter() - start) / len(group)
                        for key, subject, result in zip(keys, group, encoded):
                            known[key] = {"key": key, "suite": suite, "method": method, "size": size, "draw": draw}
                            known[key] |= _row(subject, result) | {"seconds": seconds, "processor": cpu_name()}
                            _append(path, known[key])
                    for key in keys:
                        rows.append(known[key])
                _tell(rows[-len(subjects) :])
    return rows


def _groups(subjects: list[Subject], whole_suite: bool) -> list[list[Subject]]:
    if not whole_suite:
        return [[subject] for subject in subjects]
    return [[s for s in subjects if s.seed == seed] for seed in sorted({s.seed for s in subjects})]


def _row(subject: Subject, encoded: Encoded) -> dict:
    total, scores = fp32_bits(subject.deltas), subject.score(encoded.deltas)
    return {
        "task": subject.task,
        "seed": subject.seed,
        "share": encoded.bits / total,
        "published_share": encoded.published_bits / total,
        "shared": encoded.shared_bits / total,
        **scores,
        "adr": metrics.adr(scores["finetuned_accuracy"], scores["accuracy"]),
        "squared_error": _squared_error(subject.deltas, encoded.deltas),
    }


def _squared_error(deltas: Deltas, other: Deltas) -> float:
    error = sum(sums.squared_difference(delta, other[name]) for name, delta in deltas.items())
    return error / sum(sums.energy(delta) for delta in deltas.values())


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _append(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def summary(rows: list[dict]) -> list[dict]:
    """One row a method and size: means over tasks, seeds and draws, the worst task, and the deviation of the mean KL
    over (seed, draw)."""
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        cells.setdefault((row["suite"], row["method"], row["size"]), []).append(row)
    return [
        {"suite": suite, "method": method, "size": size, "runs": len(cell)}
        | {name: _mean(row[name] for row in cell) for name in MEANS}
        | {name: _mean(row[name] for row in cell) for name in OPTIONAL_MEANS if all(name in row for row in cell)}
        | {"worst_adr": max(row["adr"] for row in cell), "worst_kl": max(row["kl"] for row in cell)}
        | {"kl_deviation": _deviation(cell)}
        for (suite, method, size), cell in cells.items()
    ]


MEANS = ("share", "published_share", "shared", "accuracy", "finetuned_accuracy", "adr", "agreement", "kl", "seconds")
OPTIONAL_MEANS = ("loss", "finetuned_loss", "base_loss")  # of language: nats a token on held-out text


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _deviation(cell: list[dict]) -> float | None:
    runs: dict[tuple, list[float]] = {}
    for row in cell:
        runs.setdefault((row["seed"], row["draw"]), []).append(row["kl"])
    means = torch.tensor([_mean(run) for run in runs.values()])
    return means.std().item() if len(means) > 1 else None


def _tell(rows: list[dict]) -> None:
    one = summary(rows)[0]
    spread = "" if one["kl_deviation"] is None else f" ± {one['kl_deviation']:.5f} over seeds and draws"
    print(
        f"{one['method']:>16} {100 * one['share']:6.3f} % of fp32   accuracy {100 * one['accuracy']:5.2f} %   "
        f"drop {100 * one['adr']:6.3f} %   agreement {100 * one['agreement']:6.2f} %   KL {one['kl']:.5f}{spread}   "
        f"worst KL {one['worst_kl']:.4f}   {one['seconds']:.1f} s",
        flush=True,
    )
