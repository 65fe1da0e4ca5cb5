"""Places of parameters and buffers."""

import torch
from torch import nn

from dts.sites import parameter_shape, raw, raw_or_none, sites, walked


def test_every_name_of_a_shared_parameter_is_a_place():
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.BatchNorm1d(3)})
    model["c"] = model["a"]
    model["d"] = nn.Linear(3, 3)
    model["d"].weight = model["a"].weight
    found = sites(model)
    shared = {name for name, site in found.items() if site.tensor is model["a"].weight}
    assert shared == {"a.weight", "c.weight", "d.weight"}
    assert found["b.running_mean"].tensor is model["b"].running_mean and found["d.bias"].shape == (3,)


def test_a_missing_bias_is_no_place():
    linear = nn.Linear(3, 4, bias=False)
    assert raw_or_none(linear, "bias") is None and list(sites(linear)) == ["weight"]
    assert raw(linear, "weight") is linear.weight


def test_a_quantised_weight_has_the_shape_of_its_matrix():
    packed = nn.Module()
    packed.in_features, packed.out_features = 6, 4
    packed.register_buffer("weight", torch.zeros(12, dtype=torch.uint8))
    assert parameter_shape(packed, "weight") == (4, 6)
    packed.register_buffer("scale", torch.zeros(4))
    assert parameter_shape(packed, "scale") == (4,)


def test_a_walk_meets_modules_as_named_modules_does():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "b": nn.ModuleList([nn.Linear(2, 2)])})
    model["b"].append(model["a"][0])  # a second place, which is not met again
    model["c"] = model["b"]
    model["b"].register_module("none", None)
    assert walked(model) == list(model.named_modules())
    assert walked(nn.ReLU())[0][0] == ""
