"""Sparse patches in safetensors: what they stand for comes out bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import dts
from dts.checkpoint import CheckpointError, write_safetensors
from dts.codec.exact import same_bits
from dts.exports import import_sparse


@pytest.fixture
def patch(tmp_path):
    """(base's folder, patch's folder, the fine-tune): flat int32 places and new values, as weight updates are sent."""
    draw = torch.Generator().manual_seed(0)
    base = {f"layer.{i}.weight": torch.randn(24, 20, generator=draw).bfloat16() for i in range(3)}
    tuned, stored = {name: value.clone() for name, value in base.items()}, {}
    for name in list(base)[:2]:
        places = torch.randperm(480, generator=draw)[:30].sort().values
        tuned[name].view(-1)[places] = torch.randn(30, generator=draw).bfloat16()
        stored[f"{name}.indices"], stored[f"{name}.values"] = places.int(), tuned[name].view(-1)[places].clone()
    stored["layer.0.weight.values"][0] = -0.0
    tuned["layer.0.weight"].view(-1)[int(stored["layer.0.weight.indices"][0])] = -0.0
    for folder in ("base", "patch"):
        (tmp_path / folder).mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    save_file(stored, tmp_path / "patch" / "delta.safetensors")
    (tmp_path / "patch" / "delta_metadata.json").write_text(json.dumps({"shapes": {name: [24, 20] for name in base}}))
    return tmp_path / "base", tmp_path / "patch", tuned


def same(adapter, base, tuned) -> bool:
    found = dict(adapter.apply(base))
    return found.keys() == tuned.keys() and all(same_bits(found[key], tuned[key]) for key in tuned)


def test_new_values_come_out_bit_for_bit(patch, tmp_path):
    base, folder, tuned = patch
    adapter = import_sparse(folder, base, tmp_path / "a", name="step")
    assert adapter.method == "exact" and adapter.name == "step" and len(adapter.entries) == 2
    assert same(dts.Adapter.load(tmp_path / "a"), base, tuned)
    assert same(import_sparse(folder / "delta.safetensors", base), base, tuned)


def test_places_may_be_coordinates_and_values_differences(patch, tmp_path):
    base, folder, _ = patch
    stored, tuned = load_file(folder / "delta.safetensors"), load_file(base / "model.safetensors")
    for name in ("layer.0.weight", "layer.1.weight"):
        places = stored[f"{name}.indices"].long()
        stored[f"{name}.indices"] = torch.stack([places // 20, places % 20])
        stored[f"{name}.values"] = added = torch.randn(len(places), generator=torch.Generator().manual_seed(1))
        flat = tuned[name].view(-1)
        flat[places] = (flat[places].float() + added).bfloat16()
    save_file(stored, folder / "delta.safetensors")
    assert same(import_sparse(folder, base, values="differences"), base, tuned)
    with pytest.raises(ValueError, match="new or differences"):
        import_sparse(folder, base, values="other")


def test_what_shira_of_peft_trains_comes_out_as_peft_merges_it(tmp_path):
    """PEFT keeps SHiRA's places outside of its file: they are taken of the model, [2, count], with what is added."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(20, 24), torch.nn.Linear(24, 20))
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    model = peft.get_peft_model(base, peft.ShiraConfig(r=2, target_modules=["0", "1"], init_weights=False))
    stored = {}
    for name in ("0", "1"):
        layer = model.base_model.model.get_submodule(name)
        stored[f"{name}.weight.indices"] = layer.shira_indices["default"].contiguous()
        stored[f"{name}.weight.values"] = layer.shira_weight["default"].detach().clone()
    save_file(stored, tmp_path / "shira.safetensors")
    adapter = import_sparse(tmp_path / "shira.safetensors", tmp_path / "base.safetensors", values="differences")
    assert same(adapter, tmp_path / "base.safetensors", model.merge_and_unload().state_dict())


BAD = {
    "no values": (lambda f: f.pop("layer.0.weight.values"), "layer.0.weight: it has no values"),
    "no indices": (lambda f: f.pop("layer.0.weight.indices"), "layer.0.weight: it has no indices"),
    "a stranger": (lambda f: f.update({"other": torch.ones(2)}), "other: neither indices nor values"),
    "another model": (
        lambda f: f.update({"h.indices": torch.ones(1).int(), "h.values": torch.ones(1)}),
        "h: the base has no",
    ),
    "beyond": (lambda f: f["layer.0.weight.indices"].__setitem__(3, 480), "an index is beyond its \\[24, 20\\]"),
    "below": (lambda f: f["layer.0.weight.indices"].__setitem__(3, -1), "an index is beyond"),
    "twice": (
        lambda f: f["layer.0.weight.indices"].__setitem__(3, f["layer.0.weight.indices"][4].item()),
        "is there twice",
    ),
    "floats": (lambda f: f.update({"layer.0.weight.indices": torch.ones(30)}), "indices are float32"),
    "fewer": (lambda f: f.update({"layer.0.weight.values": torch.ones(29)}), "30 indices and values \\[29\\]"),
    "whole numbers": (
        lambda f: f.update({"layer.0.weight.values": torch.ones(30).int()}),
        "values are int32, the base's bfloat16",
    ),
    "three a place": (lambda f: f.update({"layer.0.weight.indices": torch.ones(3, 30).int()}), "neither places"),
    "empty": (lambda f: f.clear(), "no indices and values"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_by_name(patch, tmp_path, what):
    base, folder, _ = patch
    change, match = BAD[what]
    stored = load_file(folder / "delta.safetensors")
    change(stored)
    save_file(stored, folder / "delta.safetensors")
    with pytest.raises(CheckpointError, match=match):
        import_sparse(folder, base, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def patch_of(tmp_path, **stored):
    """A patch of one element each: name -> its value, at place 0."""
    tensors = {f"{name}.indices": torch.zeros(1).int() for name in stored}
    tensors |= {f"{name}.values": value for name, value in stored.items()}
    # safetensors 0.5 writes no complex numbers
    write_safetensors(tmp_path / "p.safetensors", {n: (t.dtype, t.shape) for n, t in tensors.items()}, tensors.get)
    return tmp_path / "p.safetensors"


@pytest.mark.parametrize(
    ("dtype", "value", "values", "says"),
    [
        (torch.bool, torch.tensor([7]), "new", "1 of its values are beyond bool"),
        (torch.uint8, torch.tensor([-1]), "new", "beyond uint8"),
        (torch.uint8, torch.tensor([-1]), "differences", "once its differences are added, 1 of its values are beyond"),
        (torch.bool, torch.tensor([True]), "differences", "beyond bool"),
        (torch.float32, torch.tensor([1e300], dtype=torch.float64), "new", "beyond float32"),
        (torch.float16, torch.tensor([65504.0]), "differences", "beyond float16"),
        (torch.float32, torch.ones(1, dtype=torch.complex64), "new", "its values are complex64, the base's float32"),
    ],
)
def test_numbers_that_the_base_cannot_have_are_refused(tmp_path, dtype, value, values, says):
    """Each came out as another number, without a word."""
    base = {"other": torch.ones(4), "x": torch.full((3,), 1 if dtype == torch.bool else 0).to(dtype)}
    base["x"] = torch.full((3,), 65504.0).half() if dtype == torch.float16 else base["x"]
    with pytest.raises(CheckpointError, match=says):
        import_sparse(patch_of(tmp_path, x=value), base, values=values)


def test_numbers_that_the_base_can_have_are_taken(tmp_path):
    base = {"x": torch.full((3,), 9, dtype=torch.uint8), "y": torch.ones(3).bfloat16(), "z": torch.ones(3)}
    given = {"x": torch.tensor([-2]), "y": torch.tensor([1.0]), "z": torch.tensor([float("nan")])}
    found = dict(import_sparse(patch_of(tmp_path, **given), base, values="differences").apply(base))
    assert [found[name].float()[0].item() for name in "xy"] == [7, 2] and found["z"][0].isnan()


def test_one_tensor_of_the_base_is_not_patched_twice(tmp_path):
    """The patch that came last was taken, without a word."""
    tied = torch.ones(4, 3)
    base = {"embed": tied, "head": tied}
    with pytest.raises(CheckpointError, match="head: it is one tensor with embed in the base, and both are patched"):
        import_sparse(patch_of(tmp_path, embed=torch.tensor([5.0]), head=torch.tensor([6.0])), base)
    found = dict(import_sparse(patch_of(tmp_path, head=torch.tensor([6.0])), base).apply(base))
    assert found["embed"][0, 0] == found["head"][0, 0] == 6


def test_a_number_without_dimensions_is_patched_by_coordinates_too(tmp_path):
    stored = {"x.indices": torch.zeros(0, 1).int(), "x.values": torch.tensor([2.0])}
    save_file(stored, tmp_path / "p.safetensors")
    assert dict(import_sparse(tmp_path / "p.safetensors", {"x": torch.ones(())}).apply({"x": torch.ones(())}))["x"] == 2


def test_all_that_is_wrong_is_told_at_once_and_folders_are_looked_at(patch, tmp_path):
    base, folder, _ = patch
    (folder / "delta_metadata.json").write_text(json.dumps({"shapes": {"layer.1.weight": [20, 24]}}))
    stored = load_file(folder / "delta.safetensors")
    for what in ("a stranger", "beyond"):
        BAD[what][0](stored)
    save_file(stored, folder / "delta.safetensors")
    with pytest.raises(CheckpointError) as error:
        import_sparse(folder, base)
    assert all(part in str(error.value) for part in ("neither", "beyond", "said to be [20, 24]"))
    with pytest.raises(CheckpointError, match="is not there"):
        import_sparse(tmp_path / "none", base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has 0 .safetensors files"):
        import_sparse(tmp_path / "empty", base)
