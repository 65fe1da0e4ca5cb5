"""Names aligned without knowing the architecture; what does not fit is listed in one error."""

import pytest
import torch

from dts.checkpoint import Mismatch, open_checkpoint, pair


def model(prefix="", layers=2, rows=50, **extra) -> dict:
    generator = torch.Generator().manual_seed(0)
    state = {"embeddings.weight": torch.randn(rows, 8, generator=generator), "norm.weight": torch.ones(8)}
    for i in range(layers):
        state |= {
            f"layer.{i}.dense.weight": torch.randn(8, 8, generator=generator),
            f"layer.{i}.dense.bias": torch.zeros(8),
        }
    return {prefix + name: value for name, value in state.items()} | extra


def paired(base, finetuned):
    return pair(open_checkpoint(base), open_checkpoint(finetuned))


@pytest.mark.parametrize("theirs", ["", "bert.", "model.", "a.b.", "net.transformer."])
@pytest.mark.parametrize("ours", ["", "bert.", "model.", "encoder."])
def test_any_prefix_for_any_other(ours, theirs):
    head = {"classifier.weight": torch.ones(3, 8)}
    pairing = paired(model(ours), model(theirs, **head))
    for name in model():
        assert pairing.pairs[theirs + name].base_name == ours + name
    assert pairing.pairs["classifier.weight"].base_name is None
    assert pairing.renamed == {} and pairing.base_only == []


def test_a_wrapper_around_some_tensors_only():
    pairing = paired(model("bert.") | {"cls.bias": torch.ones(50)}, model("") | {"cls.bias": torch.ones(50)})
    assert pairing.pairs["cls.bias"].base_name == "cls.bias" and pairing.renamed == {"cls.bias": "cls.bias"}
    assert pairing.pairs["norm.weight"].base_name == "bert.norm.weight"


def test_old_names_of_norms():
    base = model("bert.")
    base["bert.norm.gamma"] = base.pop("bert.norm.weight")
    pairing = paired(base, model("bert."))
    assert pairing.pairs["bert.norm.weight"].base_name == "bert.norm.gamma"
    assert pairing.renamed == {"bert.norm.weight": "bert.norm.gamma"}


def test_what_only_the_base_has_is_noted_where_no_layer_has_it():
    base = model(**{"pooler.weight": torch.ones(8, 8), "layer.0.mask": torch.ones(1), "layer.1.mask": torch.ones(1)})
    assert paired(base, model()).base_only == ["pooler.weight", "layer.0.mask", "layer.1.mask"]


def test_every_mismatch_in_one_error():
    base = model(layers=3) | {"steps": torch.tensor(1)}
    tuned = model(layers=3) | {"steps": torch.tensor(1.0)}
    del tuned["layer.1.dense.bias"], base["layer.2.dense.weight"]
    tuned["layer.0.dense.weight"] = torch.ones(8, 9)
    with pytest.raises(Mismatch) as error:
        paired(base, tuned)
    assert [line.split(":")[0].split(" [")[0] for line in error.value.mismatches] == [
        "layer.0.dense.weight",
        "layer.1.dense.bias",
        "layer.2.dense.weight",
        "steps",
    ]


def test_another_architecture_is_refused():
    with pytest.raises(Mismatch) as error:
        paired(model(), {"conv.weight": torch.ones(3, 3), "fc.weight": torch.ones(4, 4)})
    assert len(error.value.mismatches) == 2 + len(model())


def test_rows_beyond_the_vocabulary():
    tuned = model(rows=53)
    tuned["embeddings.weight"][:50] = model()["embeddings.weight"] + 0.01
    pairing = paired(model(), tuned)
    assert pairing.pairs["embeddings.weight"].added_rows == 3
    with pytest.raises(Mismatch, match=r"\[47, 8\] in the fine-tune, \[50, 8\] in the base"):
        paired(model("m."), model("m.", rows=47))


@pytest.mark.parametrize("name", ["layer.1.dense.bias", "norm.weight", "head.bias"])
def test_a_vector_that_grew_alone_belongs_to_no_layer(name):
    """It was taken for a head's, and what came out was loaded by no class."""
    base = model("", **{"head.weight": torch.ones(3, 8), "head.bias": torch.ones(3)})
    tuned = base | {name: torch.cat([base[name], torch.ones(1)])}
    with pytest.raises(Mismatch, match=rf"{name}: shape \[{len(tuned[name])}\] in the fine-tune"):
        paired(base, tuned)


def test_the_bias_of_a_vocabulary_grows_with_it():
    base = model("", **{"head.bias": torch.ones(50)})
    tuned = model("", rows=53, **{"head.bias": torch.ones(53)})
    tuned["embeddings.weight"][:50] = base["embeddings.weight"]
    assert paired(base, tuned).pairs["head.bias"].base_name is None


def test_a_head_of_other_classes_is_another_head():
    head = lambda classes: {"classifier.weight": torch.randn(classes, 8), "classifier.bias": torch.randn(classes)}  # noqa: E731
    torch.manual_seed(0)
    for before, after in ((2, 6), (6, 2)):
        pairing = paired(model("bert.", **head(before)), model("bert.", **head(after)))
        assert {pairing.pairs[f"classifier.{leaf}"].base_name for leaf in ("weight", "bias")} == {None}


def test_an_output_embedding_saved_beside_the_input_embedding_it_equals():
    tuned = model("model.")
    tuned["lm_head.weight"] = tuned["model.embeddings.weight"].clone()
    assert paired(model("model."), tuned).pairs["lm_head.weight"].tied_to == "model.embeddings.weight"


@pytest.mark.parametrize("owner", ["lm_head.weight", "embeddings.weight"])
def test_a_tied_tensor_is_that_of_the_name_that_the_base_has(owner):
    """Whichever name of it a .bin file has first: each was said to be tied to the other."""
    tuned = model()
    shared = tuned.pop("embeddings.weight") + 1
    tuned = dict.fromkeys([owner, "lm_head.weight", "embeddings.weight"], shared) | tuned
    for base, other in ((model(), "lm_head.weight"), (model(), "embeddings.weight")):
        if other == "embeddings.weight":
            base["lm_head.weight"] = base.pop("embeddings.weight")
        pairs = paired(base, tuned).pairs
        (kept,) = {"lm_head.weight", "embeddings.weight"} - {other}
        assert pairs[other].tied_to == kept and not pairs[kept].tied_to and pairs[kept].base_name == kept


def test_a_head_that_moved_far_and_grew_with_the_vocabulary():
    torch.manual_seed(0)
    base = {f"model.layers.{i}.weight": torch.randn(24, 24) for i in range(4)}
    base |= {"model.embed.weight": torch.randn(60, 24), "lm_head.weight": torch.randn(60, 24)}
    tuned = {name: value + 0.1 * torch.randn_like(value) for name, value in base.items()}
    tuned["model.embed.weight"] = torch.cat([tuned["model.embed.weight"], torch.randn(4, 24)])
    tuned["lm_head.weight"] = torch.randn(64, 24)
    pairs = pair(open_checkpoint(base), open_checkpoint(tuned)).pairs
    assert [pairs[name].added_rows for name in ("model.embed.weight", "lm_head.weight")] == [4, 4]
    del tuned["model.embed.weight"]
    tuned["model.embed.weight"] = base["model.embed.weight"]
    assert pair(open_checkpoint(base), open_checkpoint(tuned)).pairs["lm_head.weight"].base_name is None
