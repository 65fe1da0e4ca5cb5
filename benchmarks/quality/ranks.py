"""Ranks in steps of one beside those in steps of four, which files have, as four ranks share a byte of a row: KL of
`residual` on image fine-tunes, whose matrices are small.

    python -m benchmarks.quality.ranks --tasks dtd10,gtsrb,mnist --sizes 0.001,0.0025

Nothing stores steps of one: bytes are counted as if codes of the last one to three ranks were packed along the rows.
A line a task and size, a pair a draw of the codec's randomness, and the geometric mean over tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import geometric_mean

import numpy as np

import dts.codec
from benchmarks.quality import images
from benchmarks.quality.command import hush, list_of
from benchmarks.quality.peers import Deltas, fp32_bits
from dts.adapter.budget import BLOCK, Curve, allocate, levelled
from dts.adapter.matrix import Matrix
from dts.codec import residual

STEPS = (BLOCK, 1)


def nbytes(ranks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bytes of the codes and scales of so many components of a matrix [m, n], the last one to three packed along the
    rows."""
    whole, rest = ranks // BLOCK, ranks % BLOCK
    return sum(whole * side + -(-rest * side // BLOCK) for side in shape) + 4 * ranks


def curve(matrix: Matrix, step: int) -> Curve:
    """Bytes without headers and error left at every ``step``-th rank."""
    ranks = np.arange(0, residual.METHOD.rank_limit * min(matrix.compact_shape) + 1, step)
    left = residual.METHOD.left(matrix.spectrum, ranks, matrix.compact_shape).numpy()
    left[0] = 1
    return Curve(ranks, nbytes(ranks, matrix.compact_shape), left * matrix.norm**2)


def encoded(deltas: Deltas, matrices: list[Matrix], size: float, step: int, seed: int) -> tuple[Deltas, float]:
    """Reconstructed deltas at ranks that are multiples of ``step``, and their bytes as a share of fp32."""
    curves = [curve(matrix, step) for matrix in matrices]
    allowed = size * fp32_bits(deltas) / 8
    ranks = allocate(levelled(curves, [matrix.elements for matrix in matrices]), allowed)
    found, taken = {}, 0
    for (name, delta), matrix, rank in zip(deltas.items(), matrices, ranks):
        found[name] = 0 * delta
        if rank:
            found[name] = dts.codec.compress_tensor(delta, "residual", rank=rank, name=name, seed=seed).reconstruct()
            taken += int(nbytes(np.array(rank), matrix.compact_shape))
    return found, 8 * taken / fp32_bits(deltas)


def measured(asked: argparse.Namespace) -> Iterator[tuple[str, float, list[tuple[float, ...]]]]:
    """(task, size, KL of each of `STEPS` of each draw)."""
    for task, seed, folder in images.finetunes(asked.tasks, [0]):
        subject = images.subject(task, seed, folder, asked.samples)
        matrices = [Matrix.of(delta, name, spectrum=True) for name, delta in subject.deltas.items()]
        for size in asked.sizes:
            kls = []
            for draw in asked.draws:
                made = [encoded(subject.deltas, matrices, size, step, draw) for step in STEPS]
                kls.append(tuple(subject.score(deltas)["kl"] for deltas, _ in made))
                shares = " and ".join(f"{100 * share:.4f} %" for _, share in made)
                shown = " and ".join(f"{kl:.4f}" for kl in kls[-1])
                print(f"{task.name}, {100 * size:g} %, draw {draw}: KL {shown} at {shares}", flush=True)
            yield task.name, size, kls


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=list_of(str), default=images.COMMAND.quick_tasks, help="of images, by commas")
    parser.add_argument("--sizes", type=list_of(float), default=[0.001, 0.0025], help="shares of fp32, by commas")
    parser.add_argument("--draws", type=list_of(int), default=[0], help="of the codec's randomness, by commas")
    parser.add_argument("--samples", type=int, default=400)
    asked = parser.parse_args(arguments)
    hush()
    ratios: dict[float, list[float]] = {}
    for _, size, kls in measured(asked):
        ratios.setdefault(size, []).append(geometric_mean(ones / fours for fours, ones in kls))
    for size, found in ratios.items():
        print(f"{100 * size:g} %: ones have {geometric_mean(found):.3f} of the KL of fours, {len(found)} tasks")


if __name__ == "__main__":
    main()
