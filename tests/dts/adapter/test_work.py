"""What a run keeps of finished tensors, in memory and in files."""

import pytest
import torch

from dts.adapter import Entry
from dts.adapter.matrix import Matrix
from dts.adapter.plan import Compressible
from dts.adapter.work import KeptWork, Work, work_of
from dts.codec import compress_tensor
from dts.files import building

CONFIG = {"finetuned": {"dtype": "float32", "renamed": {}, "prefix": "", "base_prefix": ""}}
NAMES = ["a.weight", "model/a.weight", "a" * 300]


def entry(name) -> Entry:
    delta = torch.randn(24, 20, generator=torch.Generator().manual_seed(0))
    factors = compress_tensor(delta, rank=4)
    return Entry(name, name, (24, 20), "factors", factors=factors, norm=factors.norm)


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_found_by_name_and_ranks(tmp_path, name):
    with building(tmp_path / "out", lambda: None, True) as place:
        memory, kept_in_files = work_of(None, {}, CONFIG), work_of(place, {"seed": 0}, CONFIG)
        assert type(memory) is Work and type(kept_in_files) is KeptWork
        for work in (memory, kept_in_files):
            assert work.entry(name, [4]) is None
            kept = work.keep(entry(name), [4])
            assert torch.equal(kept.delta(), entry(name).delta())
            assert torch.equal(work.entry(name, [4]).delta(), entry(name).delta())
            assert work.entry(name, [5]) is None and work.entry(f"{name}.other", [4]) is None


def test_spectra_are_kept_in_files_alone(tmp_path):
    delta = torch.randn(24, 20, generator=torch.Generator().manual_seed(0))
    delta[3] = 0
    plan = Compressible("a", "a", (24, 20), torch.float32, "factors", [Matrix.of(delta, "a", spectrum=True)])
    with building(tmp_path / "out", lambda: None, True) as place:
        kept = work_of(place, {}, CONFIG)
        assert kept.spectra("a") is None
        kept.keep_spectra(plan)
        (found,) = kept.spectra("a")
        assert (
            found.shape == (24, 20)
            and found.norm == plan.norm
            and torch.equal(found.singular, plan.matrices[0].singular)
        )
        assert torch.equal(found.rows, plan.matrices[0].rows) and found.columns is None
        memory = work_of(None, {}, CONFIG)
        memory.keep_spectra(plan)
        assert memory.spectra("a") is None


def test_only_the_same_options_go_on(tmp_path):
    with building(tmp_path / "out", lambda: None, True) as place:
        work_of(place, {"seed": 0, "package": "1"}, CONFIG)
        work_of(place, {"seed": 0, "package": "1"}, CONFIG)
        with pytest.raises(ValueError, match="package: '1' then, '2' now; seed: 0 then, 1 now"):
            work_of(place, {"seed": 1, "package": "2"}, CONFIG)
        (place.work / "options.json").write_text("[")
        with pytest.raises(ValueError, match="damaged"):
            work_of(place, {"seed": 0, "package": "1"}, CONFIG)
