"""Architectures with something special: tied and enlarged vocabularies, experts, convolutions, 3-D embeddings."""

import pytest
import torch

import dts
from dts.adapter import compress, write_checkpoint

transformers = pytest.importorskip("transformers")


def save(tmp_path, **models):
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    return [tmp_path / name for name in models]


def round_trip(base, finetuned, tmp_path, **size):
    """The adapter as loaded from disk, verified, and the full model it gives as transformers loads it."""
    compress(base, finetuned, out=tmp_path / "adapter", **size)
    adapter = dts.Adapter.load(tmp_path / "adapter")
    assert adapter.verify(base, finetuned).problems == []
    write_checkpoint(base, adapter, tmp_path / "full")
    return adapter


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=120, n_positions=32, n_embd=48, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("stored", ["folder", "module"])
def test_tied_and_enlarged_vocabulary(gpt2, finetune, tmp_path, stored):
    tuned = finetune(gpt2)
    tuned.resize_token_embeddings(125, mean_resizing=False)
    base, finetuned = save(tmp_path, base=gpt2, tuned=tuned)
    source = finetuned if stored == "folder" else tuned
    adapter = round_trip(base, source, tmp_path, rank_fraction=0.5)
    words = adapter.entries["transformer.wte.weight"]
    assert tuple(words.added_rows.shape) == (5, 48) and words.base_shape == (120, 48)
    assert ("lm_head.weight" in adapter.entries) == (stored == "module")
    if stored == "module":
        assert adapter.entries["lm_head.weight"].tied_to == "transformer.wte.weight"
    full = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "full").eval()
    assert full.lm_head.weight is full.transformer.wte.weight
    assert torch.equal(full.transformer.wte.weight[120:], tuned.transformer.wte.weight[120:])
    tokens = torch.tensor([[1, 124, 7, 3]])
    with torch.no_grad():
        assert (full(tokens).logits - tuned(tokens).logits).norm() < 0.3 * (
            gpt2(tokens.clamp(max=119)).logits - tuned(tokens).logits[..., :120]
        ).norm()


@pytest.mark.parametrize("prefix", ["base", "tuned"])
def test_a_body_without_its_wrapper(gpt2, finetune, tmp_path, prefix):
    """GPT2Model (no prefix) against GPT2LMHeadModel ("transformer."), either way round."""
    tuned = finetune(gpt2)
    models = {"base": gpt2, "tuned": tuned} | {prefix: (gpt2 if prefix == "base" else tuned).transformer}
    base, finetuned = save(tmp_path, **models)
    adapter = round_trip(base, finetuned, tmp_path, rank_fraction=0.3)
    assert all(entry.base_name is not None for entry in adapter.entries.values())


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe"])
def test_experts_are_matrices_of_their_own(finetune, tmp_path, family):
    torch.manual_seed(0)
    common = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    if family == "Mixtral":
        config = transformers.MixtralConfig(**common, intermediate_size=48, num_local_experts=4)
        model = transformers.MixtralForCausalLM(config)
    else:
        config = transformers.Qwen2MoeConfig(
            **common, intermediate_size=48, moe_intermediate_size=40, shared_expert_intermediate_size=40, num_experts=4
        )
        model = transformers.Qwen2MoeForCausalLM(config)
    model, tuned = model.eval(), finetune(model.eval())
    fused = [name for name, p in model.named_parameters() if p.dim() == 3]
    entries = compress(model, tuned, rank_fraction=0.2).entries
    assert len(fused) == 4
    for name in fused:
        entry = entries[name]
        assert entry.kind == "experts" and len(entry.factors) == 4 and entry.delta().shape == entry.shape
    round_trip(*save(tmp_path, base=model, tuned=tuned), tmp_path, rank_fraction=0.2)
    full = type(model).from_pretrained(tmp_path / "full").eval()
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        ours, theirs, before = (m(tokens).logits for m in (full, tuned, model))
    assert (ours - theirs).norm() < 0.5 * (before - theirs).norm()


def test_one_expert_left_alone(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {"layer.experts.up": torch.randn(3, 24, 40, generator=generator)}
    tuned = {"layer.experts.up": base["layer.experts.up"].clone()}
    tuned["layer.experts.up"][[0, 2]] += 0.1 * torch.randn(2, 24, 40, generator=generator)
    compress(base, tuned, out=tmp_path / "a", rank_fraction=0.5)
    adapter = dts.Adapter.load(tmp_path / "a")
    assert [f is None for f in adapter.entries["layer.experts.up"].factors] == [False, True, False]
    assert adapter.verify(base, tuned).problems == []
    result = dict(adapter.apply(base))["layer.experts.up"]
    assert torch.equal(result[1], base["layer.experts.up"][1])
    small = adapter.truncate(nbytes=adapter.nbytes - 300)
    assert small.nbytes < adapter.nbytes and small.verify(base, tuned).problems == []


def test_vision_model_with_convolution_and_3d_positions(finetune, tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=48,
        patch_size=8,
        num_labels=4,
    )
    model = transformers.ViTForImageClassification(config).eval()
    tuned = finetune(model)
    base, finetuned = save(tmp_path, base=transformers.ViTModel(config), tuned=tuned)
    model.vit.save_pretrained(base)
    adapter = round_trip(base, finetuned, tmp_path, rank_fraction=0.6)
    kinds = {entry.name.removeprefix("vit.embeddings."): entry.kind for entry in adapter.entries.values()}
    assert kinds["patch_embeddings.projection.weight"] == "factors" and kinds["position_embeddings"] == "experts"
    full = transformers.ViTForImageClassification.from_pretrained(tmp_path / "full").eval()
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = full(pixels).logits, tuned(pixels).logits
    assert (ours - theirs).norm() < 0.5 * theirs.norm()


def test_integers_and_booleans_that_differ_are_stored_whole():
    base = {
        "w": torch.zeros(32, 32),
        "steps": torch.tensor([1, 2]),
        "mask": torch.tensor([True]),
        "same": torch.ones(3).int(),
    }
    tuned = dict(base) | {"steps": torch.tensor([1, 5]), "mask": torch.tensor([False])}
    adapter = compress(base, tuned, nbytes=4000)
    assert {name: entry.kind for name, entry in adapter.entries.items()} == {"steps": "value", "mask": "value"}
    result = dict(adapter.apply(base))
    assert all(torch.equal(result[name], tuned[name]) for name in tuned)
