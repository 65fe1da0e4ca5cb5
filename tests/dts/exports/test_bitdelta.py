"""BitDelta's diff.pt, made as its published code makes it: the adapter is what it stands for, to the bit of float32."""

import pytest
import torch
from torch import nn

import dts
from dts.checkpoint import CheckpointError
from dts.exports import import_bitdelta
from dts.exports.bitdelta import BITS, signs_of
from dts_kernels.dispatch import exact_products
from tests.dts.exports.conftest import base_of, inputs


def packed(mask: torch.Tensor, bits: int = 32) -> torch.Tensor:
    """[in, out] truth values -> [in / bits, out] whole numbers: bit b of row j is row bits j + b."""
    dtype = {count: dtype for dtype, count in BITS.items()}[bits]
    rows = mask.long().view(-1, bits, mask.shape[1])
    total = torch.zeros(rows.shape[0], rows.shape[2], dtype=torch.int64)
    for b in range(bits):
        total |= rows[:, b] << b
    return total.to(dtype)


def diff(base: nn.Module, tuned: nn.Module, folder, bits: int = 32, whole: tuple[str, ...] = ("norm", "embed_tokens")):
    """(file, the fine-tune that it stands for): projections of attention and MLP as signs, other trained ones whole."""
    stored, expected = {}, {name: value.clone() for name, value in base.state_dict().items()}
    theirs = dict(tuned.named_parameters())
    for name, parameter in base.named_parameters():
        module = name.removesuffix(".weight")
        if "proj" in name and ("mlp" in name or "self_attn" in name):
            difference = (theirs[name] - parameter).detach()
            scale = difference.float().abs().mean()
            mask = torch.ones_like(difference)
            mask[difference < 0] = 0
            stored[f"{module}.mask"] = packed(mask.bool().T, bits)
            stored[f"{module}.coeff"] = nn.Parameter(scale.clone())
            expected[name] = parameter.detach() + scale * torch.where(mask.bool(), 1.0, -1.0)
        elif any(part in name for part in whole):
            stored[name] = nn.Parameter(theirs[name].detach().clone())
            expected[name] = theirs[name].detach()
    torch.save(stored, folder / "diff.pt")
    return folder / "diff.pt", expected


@pytest.fixture(scope="module")
def llama(made, tmp_path_factory):
    """(folder of the base, BitDelta's file, what it stands for)"""
    where = made("llama")
    base, tuned = base_of(where.parent, "llama"), base_of(where.parent, "llama")
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    return where / "base", *diff(base, tuned, tmp_path_factory.mktemp("bitdelta"), 16)


def test_every_matrix_is_what_the_file_says(llama, tmp_path):
    base, file, expected = llama
    made = import_bitdelta(file, base, tmp_path / "a", name="chat")
    adapter = dts.Adapter.load(tmp_path / "a")
    assert made.name == adapter.name == "chat" and adapter.config["squared_error"] == 0
    found = dict(adapter.apply(base))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert adapter.verify(base).ok and made.account.counts["finetuned"]["changed"] == len(adapter.entries)
    matrix = adapter.entries["model.layers.0.mlp.up_proj.weight"]
    assert matrix.kind == "factors" and matrix.rank == 0 and matrix.factors.nbytes == 48 * 32 / 4


def test_it_runs_packed_as_the_dense_model_answers(llama, made, tmp_path):
    base, file, expected = llama
    import_bitdelta(file, base, tmp_path / "a")
    dense = base_of(made("llama").parent, "llama")
    dense.load_state_dict(expected)
    model = dts.DTSModel.from_pretrained(base, adapters={"chat": tmp_path / "a"}).eval()
    batch = inputs("llama")
    with torch.no_grad(), exact_products():
        rows = model(**batch, tasks=["chat", None, "chat"]).logits
        for i, one in enumerate((dense, model.model, dense)):
            wanted = model(**batch, tasks=None).logits if one is model.model else one(**batch).logits
            torch.testing.assert_close(rows[i], wanted[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", sorted(BITS.values()))
def test_bits_of_every_size_are_read_as_they_were_packed(bits):
    mask = torch.randint(0, 2, (3 * bits, 5), generator=torch.Generator().manual_seed(bits)).bool()
    assert torch.equal(signs_of(packed(mask, bits)), mask.T)


BAD = {
    "no coeff": (
        lambda f: f.pop("model.layers.0.mlp.up_proj.coeff"),
        "up_proj.mask has no model.layers.0.mlp.up_proj.coeff",
    ),
    "no mask": (lambda f: f.pop("model.layers.0.mlp.up_proj.mask"), "up_proj.coeff has no"),
    "bool mask": (
        lambda f: f.update({"model.layers.0.mlp.up_proj.mask": torch.ones(32, 48).bool()}),
        "its mask is bool",
    ),
    "other size": (
        lambda f: f.update({"model.layers.0.mlp.up_proj.mask": torch.ones(2, 47).short()}),
        "of \\[47, 32\\]",
    ),
    "NaN": (lambda f: f.update({"model.layers.0.mlp.up_proj.coeff": torch.tensor(float("nan"))}), "no finite number"),
    "whole NaN": (
        lambda f: f.update({"model.norm.weight": torch.full((32,), float("nan"))}),
        "32 elements are no numbers",
    ),
    "infinite": (
        lambda f: f.update({"model.norm.weight": torch.full((32,), -float("inf"))}),
        "32 elements are no numbers",
    ),
    "whole numbers": (
        lambda f: f.update({"model.norm.weight": torch.ones(32).int()}),
        "model.norm.weight: its values are int32, the base's float32",
    ),
    "complex": (
        lambda f: f.update({"model.norm.weight": torch.ones(32, dtype=torch.complex64)}),
        "its values are complex64",
    ),
    "beyond float32": (
        lambda f: f.update({"model.norm.weight": torch.full((32,), 1e300, dtype=torch.float64)}),
        "32 of its values are beyond float32",
    ),
    "sparse": (lambda f: f.update({"model.norm.weight": torch.ones(32).to_sparse()}), "has sparse_coo tensors"),
    "on the meta device": (lambda f: f.update({"model.norm.weight": torch.ones(32, device="meta")}), "meta device"),
    "low rank": (
        lambda f: f.update({"model.layers.0.mlp.up_proj.A": torch.ones(2, 2)}),
        "up_proj.A: the base has no such",
    ),
    "other model": (
        lambda f: f.update({"h.0.proj.mask": torch.ones(2, 2).int(), "h.0.proj.coeff": torch.ones(())}),
        "no such weight",
    ),
    "nothing": (lambda f: [f.pop(key) for key in list(f) if key.endswith((".mask", ".coeff"))], "there is no mask"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_by_name(llama, tmp_path, what):
    base, file, _ = llama
    change, match = BAD[what]
    found = torch.load(file, weights_only=True)
    change(found)
    torch.save(found, tmp_path / "diff.pt")
    with pytest.raises(CheckpointError, match=match):
        import_bitdelta(tmp_path / "diff.pt", base, tmp_path / "a")
    assert not (tmp_path / "a").exists()


TIED = {name: torch.ones(40, 32).cumsum(0) for name in ("embed.weight", "head.weight")}
TIED["head.weight"] = TIED["embed.weight"]
MASK = {"layer.mask": torch.arange(32).view(1, 32).int(), "layer.coeff": torch.tensor(0.1)}
ANY = torch.arange(40).view(1, 40).int()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"embed.weight": torch.ones(40, 32), "head.weight": torch.zeros(40, 32)}, "head.weight: it is one tensor"),
        (
            {"embed.mask": ANY, "embed.coeff": torch.tensor(0.1), "head.weight": torch.zeros(40, 32)},
            "head.weight: it is there as a mask and whole with embed.weight, which is one tensor in the base",
        ),
    ],
)
def test_one_tensor_of_the_base_is_not_two_in_the_file(tmp_path, more, says):
    """The one that came last was taken, without a word."""
    base = TIED | {"layer.weight": torch.ones(32, 32)}
    torch.save(MASK | more, tmp_path / "diff.pt")
    with pytest.raises(CheckpointError, match=says):
        import_bitdelta(tmp_path / "diff.pt", base)
    same = {"embed.weight": torch.zeros(40, 32), "head.weight": torch.zeros(40, 32)}
    torch.save(MASK | same, tmp_path / "diff.pt")
    found = dict(import_bitdelta(tmp_path / "diff.pt", base).apply(base))
    assert not found["embed.weight"].any() and not found["head.weight"].any()


def test_infinities_that_the_base_has_too_are_taken(tmp_path):
    mask = torch.full((4,), -float("inf"))
    torch.save(MASK | {"mask_of_attention": mask}, tmp_path / "diff.pt")
    adapter = import_bitdelta(tmp_path / "diff.pt", {"layer.weight": torch.ones(32, 32), "mask_of_attention": mask})
    assert list(adapter.entries) == ["layer.weight"]


def test_all_that_is_wrong_is_told_at_once(llama, tmp_path):
    base, file, _ = llama
    found = torch.load(file, weights_only=True)
    for what in ("no coeff", "whole NaN", "other model"):
        BAD[what][0](found)
    torch.save(found, tmp_path / "diff.pt")
    with pytest.raises(CheckpointError) as error:
        import_bitdelta(tmp_path / "diff.pt", base)
    assert all(part in str(error.value) for part in ("has no", "no numbers", "no such weight"))


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty \\(0 bytes\\)"), (b"PK\x03\x04 no archive", "a damaged zip"), (None, "could run any code")],
)
def test_what_is_no_file_of_tensors_is_refused(llama, tmp_path, content, says):
    if content is None:
        torch.save({"a.mask": Harm()}, tmp_path / "diff.pt")
    else:
        (tmp_path / "diff.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        import_bitdelta(tmp_path / "diff.pt", llama[0])
    torch.save([torch.ones(2)], tmp_path / "diff.pt")
    with pytest.raises(CheckpointError, match="holds a list, not a state dict"):
        import_bitdelta(tmp_path / "diff.pt", llama[0])
    with pytest.raises(CheckpointError, match="there is no file"):
        import_bitdelta(tmp_path / "none.pt", llama[0])


def test_a_file_with_objects_is_refused_without_a_word_on_how_to_run_them(tmp_path):
    torch.save({"a": torch.ones(2), "b": torch.nn.Linear(2, 2)}, tmp_path / "diff.pt")
    with pytest.raises(
        ValueError, match=r"opened: they could run any code.  Save its state_dict\(\) instead, best as .safetensors$"
    ):
        import_bitdelta(tmp_path / "diff.pt", {"a": torch.ones(2)})
