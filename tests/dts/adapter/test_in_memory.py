"""An adapter made from files, applied to a model in memory: the names are the model's own."""

import pytest
import torch

import dts
from dts.adapter import compress

transformers = pytest.importorskip("transformers")
VISION = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, image_size=16, patch_size=8
)
LANGUAGE = dict(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)


def folders(cls, config, finetune, tmp_path):
    torch.manual_seed(0)
    base = cls(config).eval()
    base.save_pretrained(tmp_path / "base")
    finetune(base).save_pretrained(tmp_path / "tuned")
    compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", rank_fraction=0.5)
    return cls.from_pretrained(tmp_path / "base").eval(), dts.Adapter.load(tmp_path / "adapter")


@pytest.mark.parametrize(
    "cls, config",
    [
        ("Dinov2Model", lambda: transformers.Dinov2Config(**VISION)),
        (
            "BertModel",
            lambda: transformers.BertConfig(
                vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40
            ),
        ),
        (
            "MixtralForCausalLM",
            lambda: transformers.MixtralConfig(**LANGUAGE, intermediate_size=40, num_local_experts=3),
        ),
        ("GPT2LMHeadModel", lambda: transformers.GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=2)),
    ],
)
def test_strict_loading_into_the_model_it_was_applied_to(cls, config, finetune, tmp_path):
    model, adapter = folders(getattr(transformers, cls), config(), finetune, tmp_path)
    state = dict(adapter.apply(model))
    dts.adapter.write_checkpoint(tmp_path / "base", adapter, tmp_path / "full")
    expected = type(model).from_pretrained(tmp_path / "full").state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, strict=True)
    moved = 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
        moved += not torch.equal(value, before[name])
    assert moved >= 0.9 * len(before)


def test_another_model_is_refused_by_name(finetune, tmp_path):
    model, adapter = folders(transformers.Dinov2Model, transformers.Dinov2Config(**VISION), finetune, tmp_path)
    state = model.state_dict()
    with pytest.raises(dts.Mismatch, match="give the model itself"):
        dict(adapter.apply(state))
    with torch.no_grad():
        model.embeddings.cls_token += 1
    with pytest.raises(dts.Mismatch, match="embeddings.cls_token: other values"):
        dict(adapter.apply(model))


def test_a_wrapped_fine_tune_and_a_prefixed_base():
    base = {f"net.l.{i}.weight": torch.randn(24, 24) for i in range(4)}
    tuned = {name.removeprefix("net."): value + 0.1 for name, value in base.items()}
    assert set(dict(compress(base, tuned, rank_fraction=0.5).apply(base))) == set(base)


def test_a_change_lost_on_the_way_into_a_model(finetune, tmp_path, monkeypatch):
    model, adapter = folders(transformers.Dinov2Model, transformers.Dinov2Config(**VISION), finetune, tmp_path)
    real, lost = dts.adapter.Entry.apply, next(n for n, e in adapter.entries.items() if e.kind == "factors")
    monkeypatch.setattr(
        dts.adapter.Entry, "apply", lambda self, value: value if self.name == lost else real(self, value)
    )
    with pytest.raises(dts.adapter.NoEffect, match=lost):
        dict(adapter.apply(model))
