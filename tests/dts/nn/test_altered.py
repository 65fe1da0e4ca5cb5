"""A base that is pages of a file answers, is merged and saved no more once that was written to."""

import pytest
import torch
from torch import nn

import dts
from dts.files.mapped import MAPS
from dts.nn.altered import BaseAltered

pytestmark = pytest.mark.skipif(not MAPS.exists(), reason="which files are mapped is known on Linux alone")
WIDTH = 64


@pytest.fixture
def mapped(tmp_path, maker):
    """(model with a task, its file, an input)."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
    entries = maker.entries(base, skip=0)
    file = tmp_path / "base.pt"
    torch.save(base.state_dict(), file)
    base.load_state_dict(torch.load(file, mmap=True, weights_only=True), assign=True)
    model = dts.DTSModel(base)
    model.load_task("a", entries)
    return model, file, torch.randn(3, WIDTH), entries


def write_into(file):
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 512] = bytes(512)
    with open(file, "r+b") as out:
        out.write(data)


def test_it_is_refused_in_every_call_and_not_written_out(mapped):
    model, file, x, entries = mapped
    before = model(x, tasks="a")
    write_into(file)
    for options in ({"tasks": "a"}, {"tasks": ["a", None, "a"]}, {"tasks": dts.BASE}, {}, {"tasks": "a"}):
        with pytest.raises(BaseAltered, match="base.pt: the base's weights are pages of this file"):
            model(x, **options)
    with pytest.raises(BaseAltered):
        model.load_task("b", entries)
    with pytest.raises(BaseAltered):
        model.merge_and_unload("a")
    assert not torch.equal(model.model(x), before)  # which nobody was told


def test_what_takes_the_file_s_place_or_is_in_memory_by_then_goes_on(mapped, tmp_path):
    model, file, x, _ = mapped
    before = model(x, tasks="a")
    (tmp_path / "new").write_bytes(file.read_bytes()[::-1])
    (tmp_path / "new").replace(file)
    assert torch.equal(model(x, tasks="a"), before)


def test_a_model_that_was_cast_has_nothing_of_the_file(mapped):
    model, file, x, _ = mapped
    model.double()
    before = model(x.double(), tasks="a")
    write_into(file)
    assert torch.equal(model(x.double(), tasks="a"), before)
