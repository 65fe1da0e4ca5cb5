"""The published rounding against recorded inputs and outputs of the published algorithm."""

import pytest
import torch
from safetensors import safe_open

from dts.codec import compress_tensor
from dts.codec.four_group import four_group, four_group_codes


@pytest.fixture(scope="module")
def golden(shared):
    with safe_open(shared / "golden" / "four_group.safetensors", "pt") as file:
        names = {name.split(".")[0] for name in file.keys()}
        cases = {name: {} for name in names}
        for key in file.keys():
            name, part = key.split(".")
            cases[name][part] = file.get_tensor(key)
        for name, text in file.metadata().items():
            cases[name]["density"] = float(text.split("density=")[1].split(";")[0])
    assert len(cases) == 11
    return cases


def relative(x, expected):
    return ((x - expected).norm() / expected.norm()).item()


def test_rounding_matches_the_published_one(golden):
    for name, case in golden.items():
        if "u" in case:
            rounded = (four_group(case["u"]) * case["s"]) @ four_group(case["vh"])
        else:
            rounded = four_group(case["delta"])
            assert torch.equal(rounded == 0, case["delta"] == 0), name
        assert relative(rounded, case["expected"]) < 1e-6, name


def test_end_to_end_matches_the_published_algorithm(golden):
    for name, case in golden.items():
        if "u" in case:
            factors = compress_tensor(case["delta"], method="paper", rank_fraction=case["density"])
            assert factors.rank == len(case["s"]) and [part.kind for part in factors.parts] == ["paper"]
            expected_error = relative(case["expected"], case["delta"])
            assert factors.squared_error**0.5 == pytest.approx(expected_error, rel=2e-3), name
            assert relative(factors.reconstruct(), case["expected"]) < 2e-3, name


def test_four_group_by_hand():
    x = torch.tensor([3.0, 1.0, 2.0, 0.0, -1.0, -5.0])  # positive: large {3}, small {2, 1}; negative: {5}, {1}
    assert torch.allclose(four_group(x), torch.tensor([3.0, 2.5**0.5, 2.5**0.5, 0.0, -1.0, -5.0]))
    codes, levels = four_group_codes(x)
    assert codes.tolist() == [1, 0, 0, 0, 2, 3]
    assert torch.allclose(levels, torch.tensor([2.5**0.5, 3.0, -1.0, -5.0]))


def test_rank_is_at_least_one_and_at_most_what_the_matrix_has():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(20, 3, generator=generator) @ torch.randn(3, 10, generator=generator)
    assert compress_tensor(delta, method="paper", rank_fraction=0.01).rank == 1
    assert compress_tensor(delta, method="paper", rank=10).rank == 3
