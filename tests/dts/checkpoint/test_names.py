"""What a fine-tune's tensors are called once it is written: what transformers loads, whatever wrapped the training."""

import pytest
import torch

import dts
from dts.adapter import compress, write_checkpoint
from dts.checkpoint import Mismatch, open_checkpoint, pair

transformers = pytest.importorskip("transformers")
SMALL = dict(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
VISION = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
)
GROUPED = SMALL | {"num_key_value_heads": 2}
T5 = dict(vocab_size=60, d_model=24, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
PAIRS = {
    "bert": ("BertModel", "BertForSequenceClassification", SMALL),
    "bert for masks": ("BertForMaskedLM", "BertForSequenceClassification", SMALL),
    "bert body": ("BertForMaskedLM", "BertModel", SMALL),
    "roberta": ("RobertaModel", "RobertaForTokenClassification", SMALL | {"max_position_embeddings": 20}),
    "distilbert": (
        "DistilBertModel",
        "DistilBertForSequenceClassification",
        dict(vocab_size=60, dim=24, n_layers=2, n_heads=2, hidden_dim=24),
    ),
    "gpt2": ("GPT2Model", "GPT2LMHeadModel", dict(vocab_size=60, n_embd=24, n_layer=2, n_head=2)),
    "llama": ("LlamaForCausalLM", "LlamaForCausalLM", GROUPED),
    "llama with a head": ("LlamaModel", "LlamaForSequenceClassification", GROUPED | {"pad_token_id": 0}),
    "qwen2, tied": ("Qwen2ForCausalLM", "Qwen2ForCausalLM", GROUPED | {"tie_word_embeddings": True}),
    "vit": ("ViTModel", "ViTForImageClassification", VISION),
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification", VISION),
    "t5": ("T5ForConditionalGeneration", "T5ForConditionalGeneration", T5),
    "t5 encoder": ("T5EncoderModel", "T5ForTokenClassification", T5),
    "wav2vec2, weight norm": (
        "Wav2Vec2Model",
        "Wav2Vec2ForCTC",
        dict(
            vocab_size=20,
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            conv_dim=(8, 8),
            conv_stride=(2, 2),
            conv_kernel=(3, 3),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            do_stable_layer_norm=False,
        ),
    ),
}
COMPILED = lambda name: "_orig_mod." + name  # noqa: E731
WRAPPERS = {
    "none": lambda name: name,
    "torch.compile": COMPILED,
    "DDP": lambda name: "module." + name,
    "DDP around torch.compile": lambda name: "module._orig_mod." + name,
    "PEFT": lambda name: "base_model.model." + name,
    "a training module": lambda name: "model." + name,
    "three at once": lambda name: "_orig_mod.module.model." + name,
    "FSDP, layers checkpointed": lambda name: (
        "_fsdp_wrapped_module." + name.replace(".0.", ".0._checkpoint_wrapped_module.", 1)
    ),
    "a compiled layer": lambda name: name.replace(".0.", ".0._orig_mod.", 1),
    "a body only": lambda name: name if name.split(".")[0] in ("classifier", "lm_head", "score") else "net." + name,
}


def saved(folder, cls, config, wrap, state=None):
    """A folder whose tensors have the names a wrapped model gives them; ``state`` has the base's values."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(1 if state else 0)
    model = getattr(transformers, cls)(config)
    if state:
        own = model.state_dict()
        for name, value in own.items():
            tails = lambda a, b: f".{a}".endswith(f".{b}") or f".{b}".endswith(f".{a}")  # noqa: E731
            theirs = next((v for n, v in state.items() if tails(n, name)), None)
            if theirs is not None and theirs.shape == value.shape:
                value.copy_(theirs + 0.02 * torch.randn_like(theirs) if theirs.is_floating_point() else theirs)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({wrap(name): value for name, value in load_file(file).items()}, file, {"format": "pt"})
    return model


def round_trip(kind, wrap, tmp_path):
    base_class, tuned_class, sizes = PAIRS[kind]
    config = getattr(transformers, tuned_class).config_class(**sizes)
    base = saved(tmp_path / "base", base_class, config, WRAPPERS["none"])
    saved(tmp_path / "tuned", tuned_class, config, wrap, base.state_dict())
    compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", rank_fraction=0.5)
    adapter = dts.Adapter.load(tmp_path / "adapter")
    assert adapter.verify(tmp_path / "base", tmp_path / "tuned").problems == []
    write_checkpoint(tmp_path / "base", adapter, tmp_path / "full")
    cls = getattr(transformers, tuned_class)
    full, found = cls.from_pretrained(tmp_path / "full", output_loading_info=True)
    wrong = {key: sorted(map(str, names)) for key, names in found.items() if names}
    return adapter, full, wrong


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_every_wrapper_is_left_behind(kind, wrap, tmp_path):
    adapter, _, wrong = round_trip(kind, WRAPPERS[wrap], tmp_path)
    assert not wrong
    assert any(entry.kind == "factors" for entry in adapter.entries.values())


@pytest.mark.parametrize("wrap", ["none", "three at once"])
@pytest.mark.parametrize("kind", PAIRS)
def test_what_is_written_loads_whole(kind, wrap, tmp_path):
    _, _, wrong = round_trip(kind, WRAPPERS[wrap], tmp_path)
    assert not wrong


def plain(head=True):
    generator = torch.Generator().manual_seed(0)
    state = {
        f"layer.{i}.dense.{leaf}": torch.randn(*shape, generator=generator)
        for i in range(3)
        for leaf, shape in (("weight", (20, 20)), ("bias", (20,)))
    }
    return (
        state
        | {"embed.weight": torch.randn(30, 20, generator=generator)}
        | ({"classifier.weight": torch.ones(3, 20)} if head else {})
    )


@pytest.mark.parametrize("wrap", [w for w in WRAPPERS if w not in ("a training module", "a body only")])
def test_state_dicts_without_a_config(wrap):
    tuned = {WRAPPERS[wrap](name): value + 0.1 for name, value in plain().items()}
    base = plain(head=False)
    assert list(pair(open_checkpoint(base), open_checkpoint(tuned)).pairs) == list(plain())
    applied = dict(compress(base, tuned, rank_fraction=0.5).apply(base))
    assert set(applied) == set(plain())


def test_two_prefixes_exchanged_at_once():
    base = {f"text.{name}": value for name, value in plain(head=False).items()} | {
        f"vision.{name}": 2 * value for name, value in plain(head=False).items()
    }
    tuned = {name.replace("text.", "a.text.").replace("vision.", "b.c.vision."): value for name, value in base.items()}
    pairing = pair(open_checkpoint(base), open_checkpoint(tuned))
    assert all(pair.base_name == name for name, pair in pairing.pairs.items()) and set(pairing.pairs) == set(base)
    assert not pairing.base_only and len(pairing.saved_as) == len(base)


def test_a_models_own_module_called_module_stays():
    base = {f"module.{name}": value for name, value in plain().items()}
    tuned = {name: value + 0.1 for name, value in base.items()}
    assert not pair(open_checkpoint(base), open_checkpoint(tuned)).saved_as


def test_a_tensor_saved_twice_is_refused():
    tuned = plain() | {"_orig_mod." + name: value for name, value in plain().items()}
    with pytest.raises(Mismatch, match="has tensors twice, once inside a wrapper: .*save the unwrapped model alone"):
        pair(open_checkpoint(plain()), open_checkpoint(tuned))


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("weight", "gamma"),
        ("weight_g", "parametrizations.weight.original0"),
        ("parametrizations.weight.original1", "weight_v"),
    ],
)
def test_the_bases_form_of_old_names(ours, theirs):
    base, tuned = (plain() | {f"m.norm.{leaf}": torch.ones(20)} for leaf in (ours, theirs))
    pairing = pair(open_checkpoint(base), open_checkpoint(tuned))
    assert pairing.saved_as == {f"m.norm.{ours}": f"m.norm.{theirs}"}
    assert pairing.pairs[f"m.norm.{ours}"].base_name == f"m.norm.{ours}"
