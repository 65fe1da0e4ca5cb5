"""What became of every tensor of every file, by name; and what is refused because nothing became of it."""

import json

import pytest
import torch

import dts
from dts.adapter import NoEffect, NothingChanged, Suspicious, Unaccounted, compress, write_checkpoint
from dts.adapter.account import Account
from dts.adapter.accounting import of_model, of_pairing
from dts.checkpoint import open_checkpoint, pair


def models():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    base = {
        "emb.weight": draw(40, 24),
        "l.0.weight": draw(24, 24),
        "l.0.bias": draw(24),
        "l.1.weight": draw(24, 24),
        "l.1.bias": draw(24),
        "steps": torch.tensor(3),
        "pooler.weight": draw(24, 24),
    }
    tuned = {name: value.clone() for name, value in base.items() if name != "pooler.weight"}
    tuned["emb.weight"] = torch.cat([tuned["emb.weight"], draw(2, 24)])
    tuned["l.0.weight"] += 0.1 * draw(24, 24)
    tuned["l.1.weight"] += 1e-6 * draw(24, 24)
    tuned["l.0.bias"] += 0.1
    tuned["classifier.weight"] = draw(3, 24)
    tuned["out.weight"] = tuned["l.0.weight"]
    return base, {"_orig_mod." + name: value for name, value in tuned.items()}


def test_a_head_of_another_size_takes_the_place_of_the_bases():
    base, tuned = models()
    generator = torch.Generator().manual_seed(1)
    base |= {"classifier.weight": torch.randn(2, 24, generator=generator), "classifier.bias": torch.zeros(2)}
    tuned["_orig_mod.classifier.bias"] = torch.ones(3)
    adapter = compress(base, tuned, target_error=0.3)
    rows = {fate.name: fate for fate in adapter.account.of("base")}
    model = of_model(adapter, open_checkpoint(base), adapter.on(base))
    again = {fate.name: fate for fate in model.of("base")}
    for name in ("classifier.weight", "classifier.bias"):
        assert (
            rows[name].what == again[name].what == "absent" and "of another size" in rows[name].why == again[name].why
        )
    assert torch.equal(dict(adapter.apply(base))["classifier.weight"], tuned["_orig_mod.classifier.weight"])


def test_every_tensor_of_both_models_has_its_row():
    base, tuned = models()
    adapter = compress(base, tuned, target_error=0.3)
    fates = {fate.name: fate for fate in adapter.account.of("finetuned")}
    assert set(fates) == set(tuned)
    what = {name.removeprefix("_orig_mod."): fate.what for name, fate in fates.items()}
    assert what == {
        "emb.weight": "changed",
        "l.0.weight": "changed",
        "l.0.bias": "changed",
        "l.1.bias": "equal",
        "l.1.weight": "dropped",
        "steps": "equal",
        "classifier.weight": "new",
        "out.weight": "tied",
    }
    assert fates["_orig_mod.l.0.weight"].written_as == "l.0.weight"
    assert fates["_orig_mod.emb.weight"].why == "2 rows are new"
    ours = {fate.name: fate.what for fate in adapter.account.of("base")}
    assert set(ours) == set(base) and ours["pooler.weight"] == "absent" and ours["l.1.weight"] == "dropped"
    assert adapter.account.counts["finetuned"]["renamed"] == len(tuned)
    json.dumps(adapter.account.as_dict(), allow_nan=False)
    opened = open_checkpoint(base)
    model = adapter.on(opened)
    applied = of_model(adapter, opened, model)
    assert {f.name: f.what for f in applied.of("model")} == what
    assert {f.name: f.what for f in applied.of("base")} == ours


def test_what_nobody_explains_is_an_error():
    base, tuned = models()
    adapter = compress(base, tuned, target_error=0.3)
    pairing = pair(open_checkpoint(base), open_checkpoint(tuned))
    del adapter.entries["l.0.bias"]
    with pytest.raises(Unaccounted, match=r"1 tensors: l\.0\.bias"):
        of_pairing(pairing, adapter.entries, adapter.config["dropped"], {"l.1.bias", "steps"})
    account = Account()
    account.add("a", "base", "equal")
    for names in (["a", "b"], []):
        with pytest.raises(Unaccounted, match="of the base"):
            account.complete("base", names)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("change", ["nothing", "dtype", "names", "absent"])
def test_a_fine_tune_that_changes_nothing(change, dry_run, tmp_path):
    base, _ = models()
    tuned = {
        "nothing": dict(base),
        "dtype": {name: v.bfloat16() if v.is_floating_point() else v for name, v in base.items()},
        "names": {"_orig_mod." + name: v for name, v in base.items()},
        "absent": {name: v for name, v in base.items() if "pooler" not in name},
    }[change]
    with pytest.raises(NothingChanged, match="changes nothing: all its . tensors are those of .*--allow-empty"):
        compress(base, tuned, tmp_path / "a", dry_run=dry_run)
    assert not list(tmp_path.iterdir())
    adapter = compress(base, tuned, tmp_path / "a", dry_run=dry_run, allow_empty=True, rank_fraction=0.1)
    assert not adapter.entries
    if not dry_run:
        made = dict(dts.Adapter.load(tmp_path / "a").apply(base))
        assert all(torch.equal(made[name.removeprefix("_orig_mod.")], value) for name, value in tuned.items())


def test_a_head_alone_is_a_change():
    base, _ = models()
    adapter = compress(base, base | {"classifier.weight": torch.ones(3, 24)}, rank_fraction=0.1)
    assert adapter.account.counts["finetuned"] == {"equal": 7, "new": 1}


def test_unrelated_and_exchanged_models_are_said():
    base, _ = models()
    other = {name: torch.randn_like(v) if v.is_floating_point() else v for name, v in base.items()}
    with pytest.warns(Suspicious, match="moved by 1.. % of the norm|moved by 1..%"):
        compress(base, other, rank_fraction=0.1)
    tuned = {name: v + 0.1 if v.is_floating_point() else v for name, v in base.items()}
    tuned["classifier.weight"] = torch.ones(3, 24)
    with pytest.warns(Suspicious, match="has a task's head .classifier.weight.* are the two exchanged"):
        compress(tuned, base, rank_fraction=0.1)


def test_a_model_that_came_out_as_the_base_is_not_written(tmp_path, monkeypatch):
    base, tuned = models()
    adapter = compress(base, tuned, rank_fraction=0.5)
    real = dts.adapter.Entry.apply
    lost = lambda self, value: value if self.name == "l.0.bias" else real(self, value)  # noqa: E731
    monkeypatch.setattr(dts.adapter.Entry, "apply", lost)
    with pytest.raises(NoEffect, match=r"1 of the \d tensors that the adapter .* equal to the base: l\.0\.bias"):
        write_checkpoint(base, adapter, tmp_path / "m")
    assert not list(tmp_path.iterdir())
    with pytest.raises(NoEffect, match=r"l\.0\.bias"):
        dict(adapter.apply(base))


def test_a_change_too_small_for_the_dtype_is_said():
    base = {"w": torch.ones(40, 40).bfloat16(), "v": torch.ones(4)}
    tuned = {"w": base["w"].clone(), "v": torch.zeros(4)}
    tuned["w"][0, 0] = 1.0078125  # one step: a component of rank 1 that is spread over the row is less
    adapter = compress(base, tuned, rank_fraction=0.1)
    entry = adapter.entries["w"]
    entry.factors.packed.sigma.mul_(1e-4)
    with pytest.warns(UserWarning, match="the change of 1 tensors is too small for their dtype"):
        dict(adapter.apply(base))
