"""Adapters over quantised forms of their base, and adapters made for them: which are taken, with which word."""

import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
from coded import InBytes, InWords, MovedAtFirst, PackedAtFirst, in_class, rounded
from safetensors.torch import save_file
from torch import nn

import dts
from dts.adapter.compress import NotRepaired
from dts.checkpoint import Quantised, open_checkpoint
from dts.nn import DTSModel
from dts.nn.base import Base, QuantisedBase

KINDS = {"bytes": InBytes, "words": InWords, "class": in_class}
FAST = dict(method="paper", rank_fraction=0.5)
CLOSE = dict(method="residual", budget=0.9)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 32, bias=False)

    def forward(self, x):
        return self.last(self.norm(torch.tanh(self.first(x))))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    made = Net().eval()
    made.norm.weight.data += 0.1 * torch.randn(32)
    return made


def moved(base: nn.Module, only: str = "") -> nn.Module:
    made = copy.deepcopy(base)
    for name, p in made.named_parameters():
        if only in name:
            p.data += 0.03 * torch.randn_like(p)
    return made


def quantised(base: Net, kind: str = "bytes") -> nn.Module:
    made = copy.deepcopy(base)
    made.first, made.last = KINDS[kind](base.first), KINDS[kind](base.last)
    return made


def model_of(module: nn.Module, path="models/coded", original=None) -> DTSModel:
    """As `from_pretrained` makes one of a quantised checkpoint."""
    found = Base(path, original=original)
    found.__dict__["fingerprint"] = None
    model = DTSModel(module)
    model._base = found
    return model


@pytest.mark.parametrize("layer", [MovedAtFirst, PackedAtFirst])
def test_what_a_library_does_in_a_first_call_stays_done(layer):
    """It is part of the codes, though it is found beside them: rows are located by first calls that leave no trace."""
    base = net()
    coded, plain = copy.deepcopy(base), rounded(base, "first", "last")
    coded.first, coded.last = layer(base.first), layer(base.last)
    tuned = moved(base)
    models = [DTSModel(coded), DTSModel(plain)]
    for model in models:
        model.load_task("a", dts.compress(base, tuned, **FAST))
    x = torch.randn(3, 16)
    for tasks in (["a", None, "a"], "a", None, ["a", None, "a"]):
        found, expected = (model(x, tasks=tasks) for model in models)
        torch.testing.assert_close(found, expected)


class PackedByTwo(PackedAtFirst):
    """One that two threads would pack at once: who is about to waits for another to be, for a while."""

    met = None

    def forward(self, x):
        if not self.state.turned:
            with suppress(threading.BrokenBarrierError):
                PackedByTwo.met.wait(0.2)
            self.weight.data = self.weight.data.flip(0).contiguous()
            self.state.turned = True
        return super().forward(x)


def test_threads_that_call_first_pack_the_codes_once(monkeypatch):
    monkeypatch.setattr(PackedByTwo, "met", threading.Barrier(2))
    base = net()
    coded, plain = copy.deepcopy(base), rounded(base, "first")
    coded.first = PackedByTwo(base.first)
    models, adapter = [DTSModel(coded), DTSModel(plain)], dts.compress(base, moved(base), **FAST)
    for model in models:
        model.load_task("a", adapter)
    x = torch.randn(3, 16)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda task: models[0](x, tasks=task), ("a", None)))
    for task, answer in zip(("a", None), found):
        torch.testing.assert_close(answer, models[1](x, tasks=task))
        torch.testing.assert_close(models[0](x, tasks=task), answer)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_the_base_as_it_was(kind):
    base = net()
    adapter = dts.compress(base, moved(base), **FAST)
    model = model_of(quantised(base, kind))
    with pytest.warns(
        QuantisedBase, match="models/coded is taken for a quantised form .*: 3 tensors that are not"
    ) as w:
        model.load_task("a", adapter)
    assert any("dts compress --base-is quantised makes adapters that repair it" in str(one.message) for one in w)


def test_an_adapter_of_another_model_of_the_same_shapes():
    other = net(seed=1)
    adapter = dts.compress(other, moved(other), **FAST)
    model = model_of(quantised(net()))
    with pytest.raises(
        ValueError, match=r"models/coded \(which is quantised\) is not the base of: .* is other than here"
    ):
        model.load_task("a", adapter)
    assert model.tasks == []


def test_what_nothing_tells_must_be_said(tmp_path):
    """The adapter changes quantised matrices alone."""
    base, other = net(), net(seed=1)
    for name, one in (("base", base), ("other", other)):
        save_file(one.state_dict(), tmp_path / f"{name}.safetensors")
    base_file, other_file = tmp_path / "base.safetensors", tmp_path / "other.safetensors"
    adapter = dts.compress(base_file, moved(base, "t.weight").state_dict(), **FAST)
    with pytest.raises(ValueError, match=r"nothing was left unquantised by which to tell; .*\(quantised_from=\)"):
        model_of(quantised(base)).load_task("a", adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantisedBase)
        model_of(quantised(base), original=base_file).load_task("a", adapter)
    with pytest.raises(ValueError, match=r"was made for \w{32}, and .*other.safetensors is \w{32}"):
        model_of(quantised(base), original=other_file).load_task("a", adapter)
    with pytest.raises(ValueError, match=r"no quantised form of that: first.weight and 1 more is far from it"):
        model_of(quantised(other), original=base_file).load_task("a", adapter)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_made_for_the_quantised_base(kind, tmp_path):
    base = net()
    tuned, coded = moved(base), quantised(base, kind)
    usual = dts.compress(base, tuned, **CLOSE)
    made = dts.compress(coded, tuned, out=tmp_path / "made", base_is="quantised", name="made", **CLOSE)
    assert dts.Adapter.load(tmp_path / "made").config["base"]["quantised"] == made.config["base"]["quantised"]
    numbers = rounded(base, "first", "last")
    assert made.config["base"]["fingerprint"] == dts.compress(numbers, tuned, **FAST).config["base"]["fingerprint"]
    model = model_of(copy.deepcopy(coded))
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantisedBase)
        model.load_task("made", tmp_path / "made")
    with pytest.warns(QuantisedBase):
        model.load_task("usual", usual)
    x = torch.randn(64, 16)
    near, far = ((model(x, tasks=task) - tuned(x)).norm() for task in ("made", "usual"))
    assert near < 0.5 * far
    # over codes of another kind what it repairs is not what is wrong; over the numbers before, it is another base
    for layer in (coarse := quantised(base)).first, coarse.last:
        layer.weight.data = layer.weight.data // 4 * 4
    with pytest.warns(QuantisedBase, match="what it repairs is not what is wrong here"):
        model_of(coarse).load_task("made", made)
    with pytest.raises(ValueError, match="made for the numbers of a base quantised by .*, and this one is not"):
        model_of(copy.deepcopy(base)).load_task("made", made)
    # and it gives the fine-tune as a state dict, of the numbers of that base alone
    applied = dict(made.apply(coded))
    torch.testing.assert_close(applied["norm.weight"], tuned.norm.weight.data, rtol=0, atol=0.02)
    assert set(applied) == set(tuned.state_dict())
    assert made.verify(coded, tuned).ok
    with pytest.raises(dts.Mismatch):
        made.on(base)


def test_too_few_bytes_for_the_repair_are_told():
    base = net()
    with pytest.warns(NotRepaired, match=r"leaves \d\d% of its difference to the quantised base"):
        dts.compress(quantised(base), moved(base), base_is="quantised", method="paper", rank_fraction=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotRepaired)
        dts.compress(quantised(base), moved(base), base_is="quantised", **CLOSE)
        dts.compress(base, moved(base), method="paper", rank_fraction=0.1)


def test_a_base_that_is_not_quantised_is_not_called_so():
    base = net()
    with pytest.raises(ValueError, match=r"Net is not quantised: leave base_is \(--base-is\) out"):
        dts.compress(base, moved(base), base_is="quantised")
    with pytest.raises(ValueError, match="base_is must be one of plain, quantised, not 'int4'"):
        dts.compress(base, moved(base), base_is="int4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_is_refused_where_numbers_are_expected(kind):
    class Untouched(nn.Sequential):
        def state_dict(self, *args, **kwargs):
            raise AssertionError("making a state dict changes the codes of some libraries")

    base = net()
    coded = Untouched(quantised(base, kind))
    with pytest.raises(
        Quantised, match=r"Untouched is quantised by .* \(0.first, 0.last\): give the fine-tune as it was"
    ):
        open_checkpoint(coded)
    with pytest.raises(Quantised):
        dts.compress(base, coded)
    opened = open_checkpoint(coded, dequantise=True)
    assert opened.quantised and set(opened.names) == {f"0.{name}" for name in base.state_dict()}
    numbers = rounded(base, "first", "last")
    torch.testing.assert_close(opened.load("0.last.weight"), numbers.last.weight.data)
    assert open_checkpoint(base, dequantise=True).quantised is None
