"""Elements that are no finite numbers, or beyond a dtype, and sizes that are no numbers."""

import json
import os
import warnings

import pytest
import torch
from safetensors.torch import save_file

import dts
from dts.adapter.errors import Suspicious
from dts.checkpoint import open_checkpoint
from dts.codec import Unencodable


@pytest.fixture
def pair():
    """Two matrices and a bias, and a fine-tune of them."""
    draw = torch.Generator().manual_seed(0)
    base = {f"{i}.weight": torch.randn(48, 32, generator=draw) for i in range(2)}
    base["0.bias"] = torch.randn(48, generator=draw)
    return base, {name: value + 0.05 * torch.randn(value.shape, generator=draw) for name, value in base.items()}


def test_every_tensor_of_either_model_is_named_at_once(pair):
    base, tuned = pair
    base["1.weight"][0, 0] = float("nan")
    tuned["0.weight"][1, 1] = float("inf")
    tuned["0.bias"][1] = float("nan")
    with pytest.raises(Unencodable) as told:
        dts.compress(base, tuned, rank_fraction=0.5)
    assert "the base state dict has elements that are no finite numbers in 1.weight" in str(told.value)
    assert "the fine-tune state dict has elements that are no finite numbers in 0.bias, 0.weight" in str(told.value)


MASK = torch.full((40, 40), -float("inf")).triu(1)


@pytest.mark.parametrize("method", ["residual", "sketch", "paper"])
def test_a_mask_that_both_have_is_no_difference(pair, tmp_path, method):
    """Minus infinity less itself is no number: the models were refused, and of a merge the mask was NaN."""
    base, tuned = (model | {"mask": MASK.clone(), "masks": MASK.expand(2, 40, 40).clone()} for model in pair)
    adapter = dts.compress(base, tuned, out=tmp_path / "made", method=method, rank_fraction=0.5)
    assert adapter.entries.keys() == pair[0].keys() and adapter.verify(base, tuned).ok
    assert torch.equal(dict(adapter.apply(base))["mask"], MASK)
    tuned["mask"][0, 0] = -float("inf")
    with pytest.raises(Unencodable, match="'mask' has .* infinite"):
        dts.compress(base, tuned, method=method, rank_fraction=0.5)


@pytest.mark.parametrize("method", ["residual", "sketch", "paper"])
def test_what_a_narrower_dtype_has_no_number_for_is_no_copy(pair, tmp_path, method):
    """The infinite one was taken for the base's own, and the adapter then refused by every reader."""
    base, tuned = pair[0] | {"limit": torch.full((5,), -3e38)}, {n: t.half() for n, t in pair[1].items()}
    tuned["limit"] = base["limit"].half()
    adapter = dts.compress(base, tuned, out=tmp_path / "made", method=method, rank_fraction=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that it was rounded away
        assert torch.equal(dict(adapter.apply(base))["limit"], tuned["limit"]) and adapter.verify(base, tuned).ok
    base["2.weight"] = torch.full((40, 40), 1e6)
    tuned["2.weight"] = base["2.weight"].half()
    with pytest.raises(Unencodable, match="the fine-tune state dict has .* no finite numbers in 2.weight"):
        dts.compress(base, tuned, method=method, rank_fraction=0.5)


def test_a_change_below_float32_of_a_float64_model_is_one(pair, tmp_path):
    base = {name: value.double() for name, value in pair[0].items()}
    tuned = {name: value * (1 + 1e-12) for name, value in base.items()}
    adapter = dts.compress(base, tuned, out=tmp_path / "made", rank_fraction=1.0)
    assert adapter.entries.keys() == base.keys() and adapter.verify(base, tuned).ok


def test_a_fine_tune_that_mended_its_base(pair, tmp_path):
    """Its value takes the place of the base's NaN, which no error can be measured from."""
    base, tuned = pair
    base["0.bias"][3] = float("nan")
    adapter = dts.compress(base, tuned, out=tmp_path / "made", rank_fraction=0.5)
    assert 0 < adapter.config["squared_error"] < 1
    assert torch.equal(dict(dts.Adapter.load(tmp_path / "made").apply(base))["0.bias"], tuned["0.bias"])


def test_near_the_largest_number_of_a_dtype_an_adapter_stays_within_it(pair):
    """What it made could not be applied: an error of rounding led beyond 65504."""
    base = {name: (65000 * value.sign()).half() for name, value in pair[0].items()}
    tuned = {name: (value.float() * (1 + 0.0076 * torch.rand(value.shape))).half() for name, value in base.items()}
    adapter = dts.compress(base, tuned, rank_fraction=0.5, allow_empty=True)
    for name, value in adapter.apply(base):
        assert value.isfinite().all() and (value.abs() > 64000).all(), name


@pytest.mark.parametrize("size", ["1%", True, float("nan"), -1, 0])
def test_sizes_that_are_none(pair, tmp_path, size):
    with pytest.raises(ValueError, match="a number above 0"):
        dts.compress(*pair, budget=size)
    dts.compress(*pair, out=tmp_path / "made", rank_fraction=0.5)
    with pytest.raises(ValueError, match="a size is a number above 0, .*, not "):
        dts.Adapter.load(tmp_path / "made", budget=size)


def test_class_names_in_a_tuple(pair, tmp_path):
    made = dts.compress(*pair, out=tmp_path / "made", rank_fraction=0.5, class_names=("sad", "glad"))
    assert made.class_names == dts.Adapter.load(tmp_path / "made").class_names == ["sad", "glad"]


@pytest.mark.parametrize("labels", [{"0": 1, "1": 2}, {"0": True, "1": "no"}, {"0": 0.5, "1": 1.5}])
def test_labels_that_are_numbers_are_text(pair, tmp_path, labels):
    """They were refused once all was compressed, by the words of a damaged adapter."""
    for name, model in zip(("base", "tuned"), pair):
        (tmp_path / name).mkdir()
        save_file(model, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"id2label": labels}))
    adapter = dts.compress(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "made", rank_fraction=0.5)
    assert adapter.class_names == dts.Adapter.load(tmp_path / "made").class_names == list(map(str, labels.values()))
    (tmp_path / "tuned/config.json").write_text(json.dumps({"id2label": {"0": ["a"]}}))
    with pytest.raises(ValueError, match="id2label is .* not an object of numbers and labels"):
        dts.compress(tmp_path / "base", tmp_path / "tuned", rank_fraction=0.5)


def test_names_that_are_not_as_many_as_the_classes(pair, tmp_path):
    for folder, tensors in zip(("base", "tuned"), pair):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    (tmp_path / "tuned/config.json").write_text(json.dumps({"id2label": {0: "no", 1: "yes"}}))
    with pytest.warns(Suspicious, match="3 names of classes were given, and .*tuned has 2: "):
        dts.compress(tmp_path / "base", tmp_path / "tuned", rank_fraction=0.5, class_names=["a", "b", "c"])


def test_a_parametrised_model_against_a_plain_one():
    plain, normed = torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.nn.Sequential(torch.nn.Linear(8, 8))
    torch.nn.utils.parametrizations.weight_norm(normed[0])
    with pytest.raises(ValueError, match="One of them is parametrised .* remove_parametrizations"):
        dts.compress(plain, normed)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_called_weights_and_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"has no model.safetensors"):
        open_checkpoint(tmp_path)


def test_a_model_that_moved_beyond_all_measure_is_told_in_few_digits(pair):
    with pytest.warns(UserWarning, match=r"moved by \d\.\de\+\d+% of the norm"):
        dts.compress({name: value * 1e-9 for name, value in pair[0].items()}, pair[1], rank_fraction=0.5)


def test_a_scheduler_of_diffusers_is_no_trainers_state(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    with pytest.raises(ValueError) as told:
        open_checkpoint(tmp_path)
    assert "trainer" not in str(told.value)
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).names == ["a"]
