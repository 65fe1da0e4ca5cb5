"""Every architecture gives, in a batch whose rows are different tasks, what each fine-tune gives alone."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

import dts  # noqa: E402
from dts.nn import DTSModel  # noqa: E402
from dts_kernels.dispatch import exact_products  # noqa: E402

TEXT = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
DECODER = dict(**TEXT, num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=0)
IMAGE = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
)
CLIP = dict(
    text_config=dict(**TEXT, max_position_embeddings=20, projection_dim=16),
    vision_config=dict(**IMAGE, projection_dim=16),
    projection_dim=16,
)
GPT2 = dict(
    vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0
)
T5 = dict(
    vocab_size=50,
    d_model=16,
    d_kv=8,
    d_ff=32,
    num_layers=2,
    num_heads=2,
    eos_token_id=2,
    decoder_start_token_id=0,
    pad_token_id=0,
)
MIXTRAL = dict(**DECODER, num_local_experts=4, experts_implementation="eager")  # the fused one lacks float64
QWEN_MOE = dict(
    **DECODER,
    num_experts=4,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
    num_experts_per_tok=2,
    experts_implementation="eager",
)

MODELS = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT | dict(num_labels=3)),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", TEXT | dict(num_labels=3)),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE | dict(num_labels=3)),
    "clip-classifier": ("CLIPForImageClassification", "CLIPConfig", CLIP | dict(num_labels=3)),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER | dict(tie_word_embeddings=True)),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", MIXTRAL),
    "qwen2-moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", QWEN_MOE),
}


def build(name, seed=0):
    """A tiny random base in float64, with parameters that are not the constants they are initialised with."""
    model_class, config_class, options = MODELS[name]
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**options)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def inputs(name, rows, length=6):
    generator = torch.Generator().manual_seed(1)
    if name in ("vit", "clip-classifier"):
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator, dtype=torch.float64)}
    ids = torch.randint(3, 50, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if name in ("bert", "roberta", "t5"):
        mask[0, -2:] = 0  # right padding
    batch = {"input_ids": ids, "attention_mask": mask}
    if name == "t5":
        batch["decoder_input_ids"] = torch.randint(3, 50, (rows, length - 2), generator=generator)
    return batch


def row(batch, i):
    return {key: value[i : i + 1] for key, value in batch.items()}


TASKS = ["a", None, "b", {"a": 0.75, "b": 0.25}, "a"]


def weights(task, tasks):
    mixture = {} if task is None else task if isinstance(task, dict) else {task: 1.0}
    return [(tasks[name], gamma) for name, gamma in mixture.items()]


def loaded(base, maker, **options):
    tasks = {"a": maker.entries(base, **options), "b": maker.entries(base, **options)}
    model = DTSModel(copy.deepcopy(base))
    for name, entries in tasks.items():
        model.load_task(name, entries)
    return model, tasks


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_every_row_its_own_task(name, maker, dense_twin):
    base = build(name)
    model, tasks = loaded(base, maker)
    batch = inputs(name, len(TASKS))
    with torch.no_grad():
        logits = model(**batch, tasks=TASKS).logits
        plain = base(**batch).logits
        for i, task in enumerate(TASKS):
            expected = dense_twin(base, weights(task, tasks))(**row(batch, i)).logits
            close(logits[i : i + 1], expected)
            assert (task is None) == torch.allclose(expected, plain[i : i + 1], atol=1e-4)
    assert bool(model.status()["grouped"]) == (name == "t5")


@pytest.mark.parametrize("name", MODELS)
def test_set_task_mixture_and_merge(name, maker, dense_twin):
    base = build(name)
    model, tasks = loaded(base, maker)
    batch = inputs(name, 3)
    with torch.no_grad():
        plain = base(**batch).logits
        close(model(**batch).logits, plain)
        model.set_task("b")
        close(model(**batch).logits, dense_twin(base, weights("b", tasks))(**batch).logits)
        with model.disable_tasks():
            close(model(**batch).logits, plain)
        mixture = {"a": 0.5, "b": -0.25}
        expected = dense_twin(base, weights(mixture, tasks))(**batch).logits
        close(model(**batch, tasks=mixture).logits, expected)
        close(model(**batch, tasks=[mixture] * 3).logits, expected)
        close(model(**batch).logits, dense_twin(base, weights("b", tasks))(**batch).logits)
        merged = model.merge_and_unload(mixture)
        assert type(merged) is type(base) and {type(m) for m in merged.modules()} == {type(m) for m in base.modules()}
        close(merged(**batch).logits, expected)
    assert merged.state_dict().keys() == base.state_dict().keys()


def test_switching_a_compiled_model_does_not_recompile(maker):
    base = build("llama")
    model, _ = loaded(base, maker)
    batch, programs = inputs("llama", 2), 0

    def count(graph, example_inputs):
        nonlocal programs
        programs += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=count)
    with torch.no_grad():
        for task in ("a", None, "b"):
            model.set_task(task)
            close(compiled(**batch).logits, model(**batch).logits)
    assert programs == 1


def test_clip_compares_each_image_with_the_texts_of_its_own_task(maker, dense_twin):
    """Image and text towers meet in the logits: rows are those of each fine-tune, with all texts."""
    torch.manual_seed(0)
    base = transformers.CLIPModel(transformers.CLIPConfig(**CLIP)).double().eval()
    model, tasks = loaded(base, maker, skip=0)
    images = inputs("vit", len(TASKS))["pixel_values"]
    for texts in (3, len(TASKS)):
        ids = torch.randint(3, 50, (texts, 4), generator=torch.Generator().manual_seed(texts))
        with torch.no_grad():
            found = model(pixel_values=images, input_ids=ids, tasks=TASKS).logits_per_image
            for i, task in enumerate(TASKS):
                expected = dense_twin(base, weights(task, tasks))(pixel_values=images, input_ids=ids).logits_per_image
                close(found[i], expected[i])
    with torch.no_grad():
        features = model.call("get_image_features", pixel_values=images, tasks=TASKS)
        features = getattr(features, "pooler_output", features)
        for i, task in enumerate(TASKS):
            expected = dense_twin(base, weights(task, tasks)).get_image_features(pixel_values=images[i : i + 1])
            close(features[i : i + 1], getattr(expected, "pooler_output", expected))


@pytest.mark.parametrize("name", ["bert", "mixtral", "vit"])
def test_in_single_precision(name, maker, dense_twin, monkeypatch):
    """float32 through the implementations that transformers chooses by itself."""
    monkeypatch.setitem(MODELS, "mixtral", (*MODELS["mixtral"][:2], DECODER | dict(num_local_experts=4)))
    base = build(name).float()
    model, tasks = loaded(base, maker)
    batch = {k: v.float() if v.is_floating_point() else v for k, v in inputs(name, len(TASKS)).items()}
    with torch.no_grad(), exact_products():  # CPU products otherwise carry 16 bits of x, less than the tolerance
        logits = model(**batch, tasks=TASKS).logits
        for i, task in enumerate(TASKS):
            expected = dense_twin(base, weights(task, tasks))(**row(batch, i)).logits
            torch.testing.assert_close(logits[i : i + 1], expected, rtol=1e-4, atol=1e-4)


def test_a_merged_model_can_be_saved_and_loaded_again(tmp_path):
    """Its config has the fine-tune's classes, not the base's."""
    torch.manual_seed(0)
    small = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    base = transformers.BertModel(transformers.BertConfig(**small))
    base.save_pretrained(tmp_path / "base")
    tuned = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            **small,
            num_labels=5,
            id2label={i: f"class {i}" for i in range(5)},
            label2id={f"class {i}": i for i in range(5)},
        )
    )
    tuned.bert.load_state_dict(base.state_dict())
    tuned.save_pretrained(tmp_path / "tuned")
    other = transformers.BertForSequenceClassification(transformers.BertConfig(**small, num_labels=3))
    other.bert.load_state_dict(base.state_dict())
    other.save_pretrained(tmp_path / "other")
    adapters = {}
    for name in ("other", "tuned"):
        adapters[name] = dts.compress(tmp_path / "base", tmp_path / name, tmp_path / f"a-{name}", rank_fraction=0.5)
    model = dts.DTSModel.from_pretrained(tmp_path / "base", adapters=adapters)
    plain = model.merge_and_unload("tuned")
    assert plain.config.num_labels == 5 and plain.config.id2label[4] == "class 4"
    ids = torch.randint(0, 50, (3, 7))
    assert torch.isfinite(plain(ids, labels=torch.tensor([0, 4, 2])).loss)
    plain.save_pretrained(tmp_path / "merged")
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(again(ids).logits, plain.eval()(ids).logits)


def test_gradient_checkpointing(maker):
    """Recomputation in the backward pass uses the tasks of the call, whatever is chosen by then."""
    torch.manual_seed(0)
    model = DTSModel(transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)))
    for name in "ab":
        model.load_task(name, maker.entries(model.model, skip=0, only="proj"))
    ids = torch.randint(3, 50, (2, 6))
    for tasks in (None, "a", ["b", "a"]):
        found = []
        for enabled in (False, True):
            if enabled:
                model.model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train().zero_grad()
            model.set_task("a")
            loss = model(ids, labels=ids, tasks=tasks).loss
            model.set_task("b")
            loss.backward()
            found.append(model.model.model.embed_tokens.weight.grad.clone())
        model.model.gradient_checkpointing_disable()
        torch.testing.assert_close(*found)
