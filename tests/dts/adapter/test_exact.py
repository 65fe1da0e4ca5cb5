"""Method "exact": every tensor of what an adapter gives is the fine-tune's, bit for bit."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import dts
from dts.adapter import AdapterError, write_checkpoint
from dts.adapter.errors import NothingChanged
from dts.checkpoint import Mismatch
from dts.codec.exact import same_bits
from tests.dts.adapter import tiny
from tests.fuzz.form import opened, signed, tensors_in


def models(dtype: torch.dtype = torch.bfloat16, share: float = 0.1) -> tuple[dict, dict]:
    """(base, fine-tune) of all that a fine-tune may have, NaN, -0 and infinities among it."""
    both = tiny.base(), tiny.lightly(share=share)
    base, tuned = ({k: v.to(dtype) if v.is_floating_point() else v for k, v in model.items()} for model in both)
    base["body.0.weight"].view(-1)[1], base["body.0.weight"].view(-1)[9] = 0.0, float("nan")
    tuned["body.0.weight"].view(-1)[9] = float("nan")
    tuned["lm_head.weight"] = tuned["embed.weight"]
    return base, tuned


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(same_bits(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_tensor_comes_back_bit_for_bit(tmp_path, dtype):
    base, tuned = models(dtype)
    made = dts.compress(base, tuned, tmp_path / "a", method="exact", name="a")
    adapter = dts.Adapter.load(tmp_path / "a")
    assert made.method == adapter.method == "exact" and adapter.config["squared_error"] == 0
    assert made.nbytes == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert same(dict(adapter.apply(base)), tuned)
    kinds = {name: entry.kind for name, entry in adapter.entries.items()}
    assert kinds["head.weight"] == "value" and kinds["head.bias"] == "exact"  # which has a NaN
    assert kinds["lm_head.weight"] == "tied" and kinds["steps"] == kinds["embed.weight"] == "exact"


def test_files_have_the_bytes_of_the_fine_tunes(tmp_path):
    base, tuned = models()
    tuned.pop("lm_head.weight")  # which a file has once
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(tiny.CONFIG))
    dts.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "a", method="exact")
    adapter = dts.Adapter.load(tmp_path / "a")
    write_checkpoint(str(tmp_path / "base"), adapter, tmp_path / "again")
    assert same(
        load_file(tmp_path / "again" / "model.safetensors"), load_file(tmp_path / "tuned" / "model.safetensors")
    )
    report = adapter.verify(tmp_path / "base", tmp_path / "tuned")
    assert report.ok and report.bits == len(tuned) and not report.errors


def test_what_changed_little_takes_little():
    base = {"a.weight": torch.randn(300, 200, generator=torch.Generator().manual_seed(0)).bfloat16()}
    tuned = {"a.weight": base["a.weight"].clone()}
    tuned["a.weight"].view(-1)[::200] += 1
    adapter = dts.compress(base, tuned, method="exact")
    (entry,) = adapter.entries.values()
    assert entry.patch.changed == 300 and sum(t.nbytes for t in entry.patch.tensors.values()) < 2 * 300
    assert adapter.nbytes < 0.03 * base["a.weight"].nbytes


def test_bits_that_equal_numbers_hide_are_changes(tmp_path):
    base = {"a.weight": torch.zeros(40, 30), "b.weight": torch.full((40, 30), float("nan"))}
    tuned = {"a.weight": base["a.weight"].clone(), "b.weight": base["b.weight"].clone()}
    with pytest.raises(NothingChanged):
        dts.compress(base, tuned, method="exact")
    tuned["a.weight"][3, 4] = -0.0
    adapter = dts.compress(base, tuned, tmp_path / "a", method="exact")
    assert list(adapter.entries) == ["a.weight"] and same(dict(adapter.apply(base)), tuned)
    assert not adapter.verify(base, base).ok and adapter.verify(base, tuned).ok


def test_a_fine_tune_in_another_dtype_is_its_own():
    base, _ = models(torch.float32)
    _, tuned = models(torch.bfloat16)
    adapter = dts.compress(base, tuned, method="exact")
    assert same(dict(adapter.apply(base)), tuned) and adapter.verify(base, tuned).ok


def test_a_base_that_overflows_in_the_fine_tunes_dtype_still_comes_back():
    base = {"a.weight": torch.ones(20, 20), "b.weight": torch.full((20, 20), 1e6)}
    tuned = {key: value.half() for key, value in base.items()}
    tuned["a.weight"][0, 0] = 2
    adapter = dts.compress(base, tuned, method="exact")
    assert adapter.entries["b.weight"].patch is None and same(dict(adapter.apply(base)), tuned)


def test_a_difference_beyond_all_norms_is_written_and_read(tmp_path):
    base, tuned = {"a.weight": torch.zeros(40, 40)}, {"a.weight": torch.full((40, 40), 3e38)}
    dts.compress(base, tuned, tmp_path / "a", method="exact")
    assert same(dict(dts.Adapter.load(tmp_path / "a").apply(base)), tuned)


def test_another_base_is_refused_by_the_tensor_that_comes_out_wrong():
    base, tuned = models()
    adapter = dts.compress(base, tuned, method="exact")
    other = {key: value.clone() for key, value in base.items()}
    other["conv.weight"].view(-1)[7] += 1  # which no sample of the fingerprint need see
    with pytest.raises(Mismatch):
        dict(adapter.apply(other))
    with pytest.raises(AdapterError, match="conv.weight does not come out as the fine-tune's, bit for bit"):
        dict(adapter.apply(other, check=False))
    report = adapter.verify(base)
    assert report.ok and report.bits == sum(entry.kind == "exact" for entry in adapter.entries.values())


def test_verify_finds_an_unchanged_tensor_that_differs_in_one_bit_alone():
    base, tuned = {"a.weight": torch.zeros(9, 9), "b.weight": torch.zeros(9, 9)}, {}
    tuned = {"a.weight": torch.ones(9, 9), "b.weight": torch.zeros(9, 9)}
    adapter = dts.compress(base, tuned, method="exact")
    tuned["b.weight"][0, 0] = -0.0
    report = adapter.verify(base, tuned)
    assert report.problems == ["b.weight: not the fine-tune's, bit for bit"] and report.bits == 1


@pytest.mark.parametrize(
    "given, match",
    [
        ({"budget": 0.01}, "leave budget= out"),
        ({"nbytes": 1000, "target_error": 0.1}, "leave nbytes=, target_error= out"),
        ({"rank_fraction": 0.3, "vectors": "3bit"}, "leave rank_fraction= out; vectors=.* rounds"),
        ({"base_is": "quantised"}, "needs the bits"),
        ({"device": "meta"}, "computes on the CPU"),
    ],
)
def test_sizes_and_roundings_are_refused(given, match):
    with pytest.raises(ValueError, match=match):
        dts.compress(*models(), method="exact", **given)


def test_no_prefix_of_it_is_a_model(tmp_path):
    base, tuned = models()
    adapter = dts.compress(base, tuned, tmp_path / "a", method="exact")
    assert adapter.truncate(nbytes=adapter.nbytes) is adapter
    with pytest.raises(ValueError, match="of which no prefix is a model"):
        adapter.truncate(nbytes=100)
    with pytest.raises(ValueError, match="of which no prefix is a model"):
        dts.Adapter.load(tmp_path / "a", budget=0.001)


def test_a_dry_run_tells_the_bytes_and_writes_nothing(tmp_path):
    base, tuned = models()
    told = dts.compress(base, tuned, tmp_path / "a", method="exact", dry_run=True)
    assert not (tmp_path / "a").exists()
    assert told.nbytes == dts.compress(base, tuned, tmp_path / "a", method="exact").nbytes


def test_a_mixture_takes_differences_to_the_base():
    base, tuned = models(torch.float32)
    base = {key: value for key, value in base.items() if key in ("body.0.bias", "norm.weight")}
    tuned = {key: tuned[key] for key in base}
    other = {key: value + 1 for key, value in base.items()}
    packed = dts.compress(base, other, name="b", method="residual", rank_fraction=0.5)
    members = {"a": dts.compress(base, tuned, name="a", method="exact"), "b": packed}
    with pytest.raises(ValueError, match=r"method exact\): give base="):
        dts.unseen.mix(members, {"a": 0.5, "b": 0.25})
    mixture = dts.unseen.mix(members, {"a": 0.5, "b": 0.25}, base=base)
    for name, value in mixture.entries.items():
        wanted = 0.5 * (tuned[name].float() - base[name].float()) + 0.25 * (other[name].float() - base[name].float())
        assert torch.allclose(value.delta(base[name]), wanted, atol=1e-6)


def flipped(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 16]) + raw[place + 1 :]


GARBLED = {
    "cut off": (lambda row, raw: raw[:-1], "cut off"),
    "longer": (lambda row, raw: raw + b"0", "behind its end"),
    "no frame": (lambda row, raw: bytes(len(raw)), "is no zstd frame"),
    "another count": (lambda row, raw: row.update(changed=row["changed"] + 1), "is said|bytes, where|changed"),
    "none changed": (lambda row, raw: row.update(changed=0), "cannot have changed"),
    "another shape": (lambda row, raw: row.update(shape=[20, 25]), "bytes, where|shape"),
    "another dtype": (lambda row, raw: row.update(dtype="float64"), "bytes, where"),
    "too large for memory": (lambda row, raw: row.update(shape=[1 << 30, 1 << 30]), "bytes, where|shape"),
    "altered inside": (lambda row, raw: flipped(raw, -8), "damaged|holds|changed|bit for bit"),
    "another result": (lambda row, raw: row.update(result="0" * 16), "bit for bit"),
}


@pytest.mark.parametrize("share", [0.05, 1.0])
@pytest.mark.parametrize("what", GARBLED)
def test_damage_that_its_digests_do_not_tell_is_refused_before_use(tmp_path, what, share):
    """Digests are made anew, as whoever means harm would."""
    base, tuned = models(share=share)
    dts.compress(base, tuned, tmp_path / "a", method="exact")
    change, match = GARBLED[what]
    form = opened(tmp_path / "a")
    row = form.config["tensors"]["body.0.weight"]
    for stored in form.rows:
        if stored[0] == "body.0.weight.changes":
            stored[3] = change(row, stored[3]) or stored[3]
            stored[2] = [len(stored[3])]
    signed(form)
    form.write(tmp_path / "b")
    with pytest.raises((AdapterError, Mismatch), match=match):
        dict(dts.Adapter.load(tmp_path / "b").apply(base))
    with pytest.raises((AdapterError, Mismatch)):
        write_checkpoint(base, dts.Adapter.load(tmp_path / "b"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    base, tuned = models()
    dts.compress(base, tuned, tmp_path / "a", method="exact")
    path = tmp_path / "a" / "dts_model.safetensors"
    content = path.read_bytes()
    for place in range(0, len(content), 37):
        path.write_bytes(flipped(content, place))
        with pytest.raises(AdapterError):
            dts.Adapter.load(tmp_path / "a")


def test_frames_on_disk_are_read_after_the_page_alone(tmp_path):
    """The decoding that docs/format.md describes, with NumPy and zstandard, of both forms."""
    import numpy as np
    import zstandard

    for share in (0.05, 1.0):
        base, tuned = models(torch.float32, share)
        dts.compress(base, tuned, tmp_path / str(share), method="exact")
        stored = tensors_in(tmp_path / str(share))
        read = lambda key, stored=stored: zstandard.decompress(stored[f"conv.weight.{key}"].numpy().tobytes())  # noqa: E731
        c = np.frombuffer(read("changes"), np.uint8).reshape(4, -1).T.copy().view("<u4").ravel().astype(np.int64)
        where = np.arange(c.size)
        if "conv.weight.gaps" in stored:
            gaps = np.frombuffer(read("gaps"), np.uint8).reshape(4, -1).T.copy().view("<u4").ravel()
            where = np.cumsum(gaps.astype(np.int64) + 1) - 1
        assert ("conv.weight.gaps" in stored) == (share < 1)
        bits = base["conv.weight"].clone().view(-1).view(torch.int32).numpy().astype(np.int64)
        bits[where] += np.where(c & 1, -(c + 1) // 2, c // 2)
        made = torch.from_numpy((bits & 0xFFFFFFFF).astype(np.uint32).view(np.float32)).view(base["conv.weight"].shape)
        assert same_bits(made, tuned["conv.weight"])


def test_where_the_library_is_missing_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match=r"dts-merge\[exact\]"):
        dts.compress({"a": torch.zeros(2)}, {"a": torch.ones(2)}, tmp_path / "out", method="exact")
    assert not list(tmp_path.iterdir())
