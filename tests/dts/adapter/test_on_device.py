"""`dts.compress` as on a device: many matrices at once, read and written by threads.  Here on the CPU."""

import pytest
import torch

import dts
from dts.adapter import batches, on_device, run, work
from dts.adapter.batches import Piece, bytes_of
from dts.adapter.matrix import Matrix, with_tail
from dts.checkpoint import Pair, write_safetensors
from dts.checkpoint.safetensors_file import layout_of
from dts.codec import Unencodable, many
from dts.codec.methods import METHODS
from dts.codec.parts import sample
from tests.dts.adapter.tiny import base as tiny_base
from tests.dts.adapter.tiny import finetuned as tiny_finetuned

ON_CPU = many.suits


@pytest.fixture
def batched(monkeypatch):
    """The device's way."""
    monkeypatch.setattr(many, "suits", lambda device: True)
    return monkeypatch


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two folders: matrices of three shapes, of which some moved farther, and vectors."""
    generator, folder = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("pair")
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    base, tuned = {}, {}
    for i in range(4):
        for name, (m, n) in {"q": (96, 96), "up": (160, 96), "down": (96, 160)}.items():
            base[f"l.{i}.{name}.weight"] = draw(m, n).bfloat16()
            moved = draw(m, 5) @ draw(5, n) / 4 + 0.3 * draw(m, n)
            tuned[f"l.{i}.{name}.weight"] = (base[f"l.{i}.{name}.weight"] + 0.05 * (1 + i % 2) * moved).bfloat16()
        base[f"l.{i}.norm.weight"] = draw(96).bfloat16()
        tuned[f"l.{i}.norm.weight"] = (base[f"l.{i}.norm.weight"] + 0.1).bfloat16()
    tuned["l.0.q.weight"][::3] = base["l.0.q.weight"][::3]  # rows that did not move
    tuned["l.3.up.weight"] = base["l.3.up.weight"]
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        file = folder / name / "model.safetensors"
        write_safetensors(file, layout_of(tensors.items()), tensors.__getitem__, {"format": "pt"})
    return folder / "base", folder / "tuned"


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


HOW = [{"nbytes": 9000}, {"nbytes": 12000, "method": "sketch"}, {"rank_fraction": 0.2}, {"target_error": 0.3}]


@pytest.mark.parametrize("how", [*HOW, {"rank_fraction": 0.1, "method": "paper"}], ids=str)
def test_adapters_are_as_good_and_the_same_every_time(pair, tmp_path, batched, how):
    # which elements are drawn follows from sigma's bits, and those from the order of sums, which is the machine's
    batched.setattr(sample, "seed_of", lambda packed, seed: seed + packed.rank)
    made = [dts.compress(*pair, out=tmp_path / name, name="t", **how) for name in "ab"]
    assert content(tmp_path / "a") == content(tmp_path / "b")
    batched.setattr(many, "suits", ON_CPU)
    wanted = dts.compress(*pair, name="t", **how)
    assert list(made[0].entries) == list(wanted.entries) and made[0].nbytes == pytest.approx(wanted.nbytes, rel=1e-3)
    assert made[0].config["squared_error"] == pytest.approx(wanted.config["squared_error"], rel=1e-5)
    assert made[0].account == wanted.account and made[0].verify(*pair).ok


def test_all_kinds_of_tensors(batched):
    """Experts, convolutions, added rows, heads, ties: everything but matrices is as it was."""
    made = dts.compress(tiny_base(), tiny_finetuned(), rank_fraction=0.3)
    batched.setattr(many, "suits", ON_CPU)
    wanted = dts.compress(tiny_base(), tiny_finetuned(), rank_fraction=0.3)
    assert list(made.entries) == list(wanted.entries) and made.nbytes == wanted.nbytes
    for name, entry in wanted.entries.items():
        assert made.entries[name].kind == entry.kind
        if not entry.task_only and entry.kind not in ("tied", "value"):
            assert torch.allclose(made.entries[name].delta(), entry.delta(), atol=1e-5)


def test_a_dry_run_and_the_run_of_its_size_agree(pair, batched):
    dry = dts.compress(*pair, nbytes=9000, dry_run=True)
    assert dry.prediction.lower <= dts.compress(*pair, nbytes=9000).config["squared_error"] <= dry.prediction.upper


@pytest.mark.parametrize("how", HOW[:2], ids=str)
@pytest.mark.parametrize("stage", ["keep_spectra", "keep"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(pair, tmp_path, batched, how, stage):
    dts.compress(*pair, out=tmp_path / "whole", name="t", **how)
    done, real, before = [], getattr(work.KeptWork, stage), on_device.compress_many
    read: list[int] = []

    def interrupted(self, *args):
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return real(self, *args)

    with batched.context() as patch:
        patch.setattr(work.KeptWork, stage, interrupted)
        with pytest.raises(KeyboardInterrupt):
            dts.compress(*pair, out=tmp_path / "cut", name="t", **how)
    assert not (tmp_path / "cut").exists()
    batched.setattr(
        on_device, "compress_many", lambda deltas, *args: (read.append(len(deltas)), before(deltas, *args))[1]
    )
    dts.compress(*pair, out=tmp_path / "cut", name="t", resume=True, **how)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_an_error_of_the_reading_thread_names_the_tensor(pair, batched):
    real = on_device._loaded

    def damaged(pairing, piece, device):
        if piece.pair.name == "l.2.up.weight":
            batched.setattr(type(pairing.base), "load", lambda self, name: 1 / 0)
        return real(pairing, piece, device)

    batched.setattr(on_device, "_loaded", damaged)
    with pytest.raises(ZeroDivisionError) as error:
        dts.compress(*pair, nbytes=9000)
    assert error.value.__notes__ == ["while l.2.up.weight was read"]


def test_what_is_no_number_is_named(batched):
    base = {f"{i}.weight": torch.ones(40, 30) for i in range(3)}
    tuned = {name: value + 0.1 * torch.randn(40, 30) for name, value in base.items()}
    tuned["1.weight"][3, 4] = float("nan")
    with pytest.raises(Unencodable, match="'1.weight' has 1 NaN"):
        dts.compress(base, tuned, rank_fraction=0.1)


def piece(name, m, n, rank) -> Piece:
    return Piece(Pair(name, name), 0, (m, n), rank)


def test_batches_have_one_shape_near_ranks_and_a_bound():
    given = [piece(str(i), 96, 80 if i % 2 else 96, 20 + 4 * (i % 7)) for i in range(60)]
    given += [piece("far", 96, 96, 96), piece("huge", 4096, 4096, 1000)]
    room = 6 * bytes_of((96, 96), 44)
    made = batches.batches(given, room)
    assert sorted(p.pair.name for b in made for p in b) == sorted(p.pair.name for p in given)
    for batch in made:
        largest = max(p.rank for p in batch)
        assert len({p.shape for p in batch}) == 1 and batch[0].rank == largest
        assert all(p.rank >= min(0.8 * largest, largest - 16) for p in batch)
        assert len(batch) == 1 or len(batch) * bytes_of(batch[0].shape, largest) <= room
    assert batches.batches(given, room) == made and max(map(len, made)) > 3


def test_values_that_are_not_measured_have_what_is_left_of_the_norm():
    values = torch.arange(1, 301).double() ** -0.6
    filled = with_tail(values[:50], values.norm().item(), 300)
    assert len(filled) == 300 and torch.equal(filled[:50], values[:50]) and (filled.diff() <= 0).all()
    assert filled.norm().item() == pytest.approx(values.norm().item(), rel=1e-6)
    assert torch.equal(with_tail(values, 7.0, 300), values)
    exact = with_tail(values[:50], values[:50].norm().item(), 300)
    assert exact.norm().item() == pytest.approx(values[:50].norm().item(), rel=1e-6)


def test_ranks_are_planned_within_what_is_measured():
    generator = torch.Generator().manual_seed(0)
    deltas = torch.stack([torch.randn(700, 800, generator=generator) for _ in range(2)])
    deltas[1, 5] = 0
    some, other = Matrix.of_many(deltas, ["a", "b"], True, 90)
    assert some.measured == 90 and len(some.spectrum) == 700 and other.measured is None  # which is smaller: alone
    assert some.curve(METHODS["residual"]).ranks[-1] == 90
    full = Matrix.of(deltas[0], "a", True)
    ours, theirs = (m.curve(METHODS["residual"], 20) for m in (some, full))
    assert ours.errors == pytest.approx(theirs.errors, rel=0.01)


def test_only_what_a_budget_may_need_is_measured(pair, batched):
    counts: list = []
    real = on_device.measured
    batched.setattr(on_device, "measured", lambda *args: (counts.append(args[4]), real(*args))[1])
    dts.compress(*pair, nbytes=9000)
    dts.compress(*pair, nbytes=9000, dry_run=True)
    dts.compress(*pair, target_error=0.4)
    rows = 4 * (192 + 2 * 256)
    assert counts == [4 * 4 * 9000 // rows + run.LEAST, None, None]


def test_where_all_bytes_go_to_a_few_matrices_more_is_measured(batched):
    """A fine-tune of one layer: a rank that takes all values that were measured is planned again with all of them."""
    generator = torch.Generator().manual_seed(0)
    base = {f"{i}.weight": torch.randn(680, 660, generator=generator) for i in range(12)}
    tuned = base | {"3.weight": base["3.weight"] + 0.1 * torch.randn(680, 660, generator=generator)}
    batched.setattr(run, "RESERVE", 1)
    batched.setattr(run, "LEAST", 8)
    seen: list = []
    real = on_device.measured
    batched.setattr(on_device, "measured", lambda *args: (seen.append((len(args[1]), args[4])), real(*args))[1])
    made = dts.compress(base, tuned, nbytes=100_000, method="residual")
    assert seen == [(1, 32), (1, None)] and 97_000 < made.nbytes <= 100_000
