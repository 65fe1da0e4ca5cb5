"""``from_pretrained``: names as they are on disk, the fine-tunes' heads, the right base."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from dts.adapter import Adapter, Entry  # noqa: E402
from dts.checkpoint import open_checkpoint  # noqa: E402
from dts.checkpoint.fingerprint import fingerprint  # noqa: E402
from dts.codec import Factors  # noqa: E402
from dts.nn import DTSModel  # noqa: E402
from dts_kernels import PackedFactors, pack  # noqa: E402

TEXT = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
DECODER = dict(**TEXT, num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=0)
IMAGE = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
)
MODELS = {
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", DECODER | dict(num_local_experts=4)),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        DECODER | dict(num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16),
    ),
    "clip": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", IMAGE | dict(projection_dim=16)),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        dict(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2),
    ),
}


def saved(folder, model_class, config_class, options):
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def entry(name, tensor, generator):
    shape = tuple(tensor.shape)
    if tensor.dim() < 2 or tensor.dim() == 3:
        return Entry(name, name, shape, "delta", tensor=0.1 * torch.randn(shape, generator=generator))
    m, n = shape[0], tensor[0].numel()
    codes = [torch.randint(0, 4, (size, 3), generator=generator, dtype=torch.uint8) for size in (m, n)]
    packed = PackedFactors(pack(codes[0]), pack(codes[1]), 0.02 * torch.rand(3, generator=generator))
    factors = Factors((packed,), (m, n), None, None, 1.0, 0.1)
    return Entry(name, name, shape, "factors", factors=factors)


def adapter(name, folder, seed, **options):
    """An adapter with an entry for every tensor, under its name on disk."""
    generator = torch.Generator().manual_seed(seed)
    state = load_file(folder / "model.safetensors")
    entries = {key: entry(key, tensor, generator) for key, tensor in state.items()}
    config = {"base": {"fingerprint": fingerprint(open_checkpoint(folder))}}
    return Adapter(name, None, None, "task", "residual", config, entries, **options)


def fine_tune(folder, out, adapter):
    """What the adapter stands for, written as a checkpoint and read by transformers itself."""
    transformers.AutoConfig.from_pretrained(folder).save_pretrained(out)
    state = load_file(folder / "model.safetensors")
    from safetensors.torch import save_file

    tensors = {name: adapter.entries[name].apply(t).contiguous() for name, t in state.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", MODELS)
def test_names_on_disk_reach_the_parameters_in_memory(name, tmp_path):
    model_class, config_class, options = MODELS[name]
    folder = tmp_path / "base"
    saved(folder, model_class, config_class, options)
    adapters = {task: adapter(task, folder, seed) for seed, task in enumerate("ab")}
    model = DTSModel.from_pretrained(folder, adapters=adapters)
    if name in ("vit", "clip"):
        batch = {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(9))}
    else:
        batch = {"input_ids": torch.randint(3, 50, (3, 4), generator=torch.Generator().manual_seed(9))}
    with torch.no_grad():
        found = model(**batch, tasks=["a", "b", None])[0]
        for i, task in enumerate(["a", "b", None]):
            source = folder
            if task is not None:
                source = tmp_path / task
                source.mkdir()
                fine_tune(folder, source, adapters[task])
            twin = getattr(transformers, model_class).from_pretrained(source).eval()
            expected = twin(**{key: value[i : i + 1] for key, value in batch.items()})[0]
            torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-4, atol=1e-4)


def test_the_architecture_is_that_of_the_fine_tunes(tmp_path):
    base = saved(tmp_path, "BertModel", "BertConfig", TEXT)
    adapters = {}
    for task, classes in (("two", 2), ("five", 5)):
        made = adapter(task, tmp_path, classes, model_config={"architectures": ["BertForSequenceClassification"]})
        made.entries = {f"bert.{key}": Entry(**{**vars(e), "name": f"bert.{key}"}) for key, e in made.entries.items()}
        head = {"classifier.weight": torch.randn(classes, 16), "classifier.bias": torch.randn(classes)}
        for key, tensor in head.items():
            made.entries[key] = Entry(key, None, tuple(tensor.shape), "value", tensor=tensor, task_only=True)
        adapters[task] = made
    model = DTSModel.from_pretrained(tmp_path, adapters=adapters)
    assert type(model.model) is transformers.BertForSequenceClassification
    ids = torch.randint(3, 50, (2, 4))
    rows = model.task_logits(model(input_ids=ids, tasks=["five", "two"]))
    assert [len(row) for row in rows] == [5, 2]
    with torch.no_grad(), pytest.raises(ValueError, match="the base, which has no 'classifier' of its own"):
        model(input_ids=ids)
    with torch.no_grad():
        state = {key: adapters["five"].entries[f"bert.{key}"].apply(t) for key, t in base.state_dict().items()}
        base.load_state_dict(state)
        pooled = base(input_ids=ids[:1]).pooler_output[0]
        head = [adapters["five"].entries[f"classifier.{part}"].tensor for part in ("weight", "bias")]
        torch.testing.assert_close(rows[0], head[0] @ pooled + head[1], rtol=1e-4, atol=1e-4)


def test_adapters_of_another_base_are_refused(tmp_path):
    saved(tmp_path, "BertModel", "BertConfig", TEXT)
    wrong = adapter("trec", tmp_path, 1)
    wrong.config["base"]["fingerprint"] = "0" * 32
    with pytest.raises(ValueError, match=f"is not the base of: trec was made for {'0' * 32}"):
        DTSModel.from_pretrained(tmp_path, adapters={"trec": wrong})
    model = DTSModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is not the base of: trec was made for {'0' * 32}"):
        model.load_task("trec", wrong)
    assert model.tasks == []


def test_every_adapter_that_does_not_fit_is_named(tmp_path):
    """Of several: those that cannot be read, and those that are for other sizes."""
    saved(tmp_path, "BertModel", "BertConfig", TEXT)
    adapters = {name: adapter(name, tmp_path, i) for i, name in enumerate(["good", "small", "strange"])}
    adapters["small"].entries["pooler.dense.bias"] = Entry(
        "pooler.dense.bias", "pooler.dense.bias", (3,), "delta", tensor=torch.ones(3)
    )
    adapters["strange"].entries["none.such"] = Entry("none.such", "none.such", (3,), "delta", tensor=torch.ones(3))
    with pytest.raises(ValueError, match=r"(?s)^task 'small': .*\[3\].*; task 'strange': .*none\.such"):
        DTSModel.from_pretrained(tmp_path, adapters=adapters)
    with pytest.raises((ValueError, OSError), match=r"task 'x': .*task 'y': "):
        DTSModel.from_pretrained(tmp_path, adapters={"good": adapters["good"], "x": tmp_path / "a", "y": tmp_path})


def test_the_heads_of_the_checkpoint_stay_usable(tmp_path):
    base = saved(tmp_path, "BertForSequenceClassification", "BertConfig", TEXT | dict(num_labels=3))
    other = adapter("other", tmp_path, 1, model_config={"architectures": ["BertForSequenceClassification"]})
    for key, tensor in (("classifier.weight", torch.randn(5, 16)), ("classifier.bias", torch.randn(5))):
        other.entries[key] = Entry(key, None, tuple(tensor.shape), "value", tensor=tensor, task_only=True)
    model = DTSModel.from_pretrained(tmp_path, adapters={"other": other})
    ids = torch.randint(3, 50, (2, 4))
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(model.task_logits(model(input_ids=ids))), base(input_ids=ids).logits)
        rows = model.task_logits(model(input_ids=ids, tasks=["other", None]))
        assert [len(row) for row in rows] == [5, 3]
        torch.testing.assert_close(rows[1], base(input_ids=ids[1:]).logits[0], rtol=1e-4, atol=1e-4)


def test_adapters_of_several_architectures_are_refused(tmp_path):
    saved(tmp_path, "BertModel", "BertConfig", TEXT)
    adapters = {}
    for name in ("BertForSequenceClassification", "BertForTokenClassification"):
        made = adapter(name, tmp_path, 1, model_config={"architectures": [name]})
        made.entries["classifier.weight"] = Entry(
            "classifier.weight", None, (2, 16), "value", tensor=torch.ones(2, 16), task_only=True
        )
        adapters[name] = made
    with pytest.raises(ValueError, match="different architectures"):
        DTSModel.from_pretrained(tmp_path, adapters=adapters)


def test_a_merged_classifier_can_be_trained_and_saved(tmp_path):
    saved(tmp_path / "base", "BertModel", "BertConfig", TEXT)
    names = {str(i): label for i, label in enumerate("abcde")}
    made = adapter(
        "five",
        tmp_path / "base",
        1,
        model_config={
            "architectures": ["BertForSequenceClassification"],
            "id2label": names,
            "label2id": {label: int(i) for i, label in names.items()},
        },
    )
    made.entries = {f"bert.{key}": Entry(**{**vars(e), "name": f"bert.{key}"}) for key, e in made.entries.items()}
    for key, tensor in (("classifier.weight", torch.randn(5, 16)), ("classifier.bias", torch.randn(5))):
        made.entries[key] = Entry(key, None, tuple(tensor.shape), "value", tensor=tensor, task_only=True)
    for bare in (False, True):
        model = DTSModel.from_pretrained(tmp_path / "base", adapters={"five": made})
        if bare:
            model.load_task("five", made.entries)
        ids = torch.randint(3, 50, (2, 4))
        expected = model(input_ids=ids, tasks="five").logits.detach()
        merged = model.merge_and_unload("five")
        assert merged.config.num_labels == merged.num_labels == 5
        assert merged(input_ids=ids, labels=torch.tensor([0, 4])).loss.isfinite()
        merged.save_pretrained(tmp_path / "merged")
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert bare or again.config.id2label == {int(i): label for i, label in names.items()}


@pytest.mark.parametrize("what", ["enlarged", "untied"])
def test_a_merged_vocabulary_can_be_saved(tmp_path, what):
    saved(tmp_path / "base", *MODELS["gpt2"])
    made = adapter("a", tmp_path / "base", 1)
    if what == "enlarged":
        first = made.entries["transformer.wte.weight"]
        grown = {**vars(first), "shape": (53, 16), "added_rows": torch.randn(3, 16)}
        made.entries["transformer.wte.weight"] = Entry(**grown)
        ids = torch.tensor([[3, 52, 7]])
    else:
        made.entries["lm_head.weight"] = Entry(
            "lm_head.weight", None, (50, 16), "value", tensor=torch.randn(50, 16), task_only=True
        )
        made.model_config = {"tie_word_embeddings": False}
        ids = torch.tensor([[3, 42, 7]])
    model = DTSModel.from_pretrained(tmp_path / "base")
    model.load_task("a", made)
    with torch.no_grad():
        expected = model(input_ids=ids, tasks="a").logits
        merged = model.merge_and_unload("a")
        plain = merged(input_ids=ids).logits
        torch.testing.assert_close(plain, expected, rtol=1e-3, atol=1e-2)
        merged.save_pretrained(tmp_path / "merged")
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(again(input_ids=ids).logits, plain)
    assert again.config.vocab_size == expected.shape[-1]
    assert (again.lm_head.weight is again.transformer.wte.weight) == (what == "enlarged")
