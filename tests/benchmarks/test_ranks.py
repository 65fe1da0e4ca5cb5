"""Ranks in steps of one, as if they could be stored."""

import numpy as np
import pytest
import torch

from benchmarks.quality import ranks
from benchmarks.quality.suite import Classifier
from dts.adapter.matrix import Matrix
from dts.codec import residual


def test_bytes_are_those_of_files_where_ranks_are_in_fours_and_of_two_bits_an_element_between():
    fours, shape = np.arange(0, 40, 4), (24, 36)
    assert (ranks.nbytes(fours, shape) == residual.METHOD.nbytes(fours, shape)).all()
    assert ranks.nbytes(np.array([1, 2, 3, 5]), shape).tolist() == [19, 38, 57, 95]  # 60 codes and a scale each
    assert ranks.nbytes(np.array([1]), (5, 6)) == 2 + 2 + 4  # a row of codes ends with its byte


@pytest.fixture
def subject():
    generator = torch.Generator().manual_seed(0)
    deltas = {name: torch.randn(24, 36, generator=generator) for name in "ab"}
    inputs = torch.randn(30, 24, generator=generator)
    forward = lambda deltas: inputs @ (deltas["a"] + deltas["b"])  # noqa: E731
    return Classifier("noise", 0, "folder", deltas, forward, torch.zeros(30, dtype=torch.long))


def test_steps_of_one_fill_the_bytes_that_steps_of_four_leave(subject):
    matrices = [Matrix.of(delta, name, spectrum=True) for name, delta in subject.deltas.items()]
    size = 100 / (8 * 24 * 36)  # 100 bytes: a block of four ranks takes 76
    (fours, of_fours), (ones, of_ones) = (ranks.encoded(subject.deltas, matrices, size, step, 0) for step in (4, 1))
    assert (of_fours, of_ones) == (pytest.approx(0.76 * size), pytest.approx(0.95 * size))
    assert sum(delta.any() for delta in fours.values()) == 1 and all(delta.any() for delta in ones.values())


def test_the_command_prints_both_and_their_ratio(subject, monkeypatch, capsys):
    task = type("Task", (), {"name": "noise"})
    monkeypatch.setattr(ranks.images, "finetunes", lambda names, seeds: [(task, 0, "folder")])
    monkeypatch.setattr(ranks.images, "subject", lambda *of: subject)
    ranks.main(["--sizes", "0.1", "--draws", "0,1"])
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("noise, 10 %, draw 0: KL ") and second.startswith("noise, 10 %, draw 1: KL ")
    ratios = [float(b) / float(a) for a, _, b in (line.split("KL ")[1].split()[:3] for line in (first, second))]
    wanted = (ratios[0] * ratios[1]) ** 0.5
    assert float(last.split("ones have ")[1].split()[0]) == pytest.approx(wanted, abs=2e-3) and "1 tasks" in last
