"""A row keeps its task through ``generate``: caches, beams, several sequences a row."""

import copy
import warnings

import pytest
import torch

transformers = pytest.importorskip("transformers")

import dts  # noqa: E402
from dts.nn import DTSModel  # noqa: E402

TEXT = dict(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
)
GPT2 = dict(
    vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=None, pad_token_id=0
)
T5 = dict(
    vocab_size=50,
    d_model=16,
    d_kv=8,
    d_ff=32,
    num_layers=2,
    num_heads=2,
    eos_token_id=None,
    decoder_start_token_id=0,
    pad_token_id=0,
)
MODELS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "llama": ("LlamaForCausalLM", "LlamaConfig", TEXT),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
}
TASKS = ["a", None, "b", {"a": 0.5, "b": 0.5}]


def build(name):
    model_class, config_class, options = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**options)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=MODELS)
def setting(request, maker):
    base = build(request.param)
    tasks = {"a": maker.entries(base), "b": maker.entries(base)}
    model = DTSModel(copy.deepcopy(base))
    for name, entries in tasks.items():
        model.load_task(name, entries)
    ids = torch.randint(3, 50, (4, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0  # a shorter prompt, padded on the left
    return request.param, base, tasks, model, {"input_ids": ids, "attention_mask": mask}


def twin(base, task, tasks, dense_twin):
    mixture = {} if task is None else task if isinstance(task, dict) else {task: 1.0}
    return dense_twin(base, [(tasks[name], gamma) for name, gamma in mixture.items()])


def test_tasks_that_are_set_for_the_rows_generate_too(setting):
    _, _, _, model, batch = setting
    options = dict(max_new_tokens=6, do_sample=False)
    wanted = model.generate(**batch, tasks=TASKS, **options)
    model.set_tasks(TASKS)
    assert torch.equal(model.generate(**batch, **options), wanted)


@pytest.mark.parametrize("options", [{}, dict(num_beams=3, num_return_sequences=2), dict(use_cache=False)], ids=str)
def test_each_row_generates_as_its_fine_tune(setting, dense_twin, options):
    _, base, tasks, model, batch = setting
    options = dict(max_new_tokens=6, do_sample=False, **options)
    found = model.generate(**batch, tasks=TASKS, **options)
    each = options.get("num_return_sequences", 1)
    for i, task in enumerate(TASKS):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        expected = twin(base, task, tasks, dense_twin).generate(**row, **options)
        assert torch.equal(found[i * each : (i + 1) * each, : expected.shape[1]], expected)
    assert len({tuple(row.tolist()) for row in found[:, -6:]}) > 1


def test_one_prompt_under_every_task(setting, dense_twin):
    """Equal rows, and as many of them as the prompt has tokens: nothing about shapes tells a batch from a sequence."""
    name, base, tasks, model, batch = setting
    ids = batch["input_ids"][:1, :4].repeat(4, 1)
    extra = {"decoder_input_ids": ids} if name == "t5" else {}
    logits = model(input_ids=ids, **extra, tasks=TASKS).logits
    for i, task in enumerate(TASKS):
        row = {key: value[:1] for key, value in extra.items()}
        expected = twin(base, task, tasks, dense_twin)(input_ids=ids[:1], **row).logits
        torch.testing.assert_close(logits[i : i + 1], expected, rtol=1e-9, atol=1e-9)


def test_set_task_generates(setting, dense_twin):
    _, base, tasks, model, batch = setting
    model.set_task("b")
    expected = twin(base, "b", tasks, dense_twin).generate(**batch, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False), expected)
    assert torch.equal(model.generate(**batch, tasks="b", max_new_tokens=4, do_sample=False), expected)


def test_decoding_by_hand_with_a_cache(setting, dense_twin):
    """A cache made with a routing serves the next call with the same routing."""
    name, base, tasks, model, batch = setting
    if name == "t5":
        pytest.skip("runs once a task: the batch has no cache of its own")
    ids = batch["input_ids"][[0, 2, 3, 3]]
    first = model(input_ids=ids[:, :4], use_cache=True, tasks=TASKS)
    second = model(input_ids=ids[:, 4:], past_key_values=first.past_key_values, tasks=TASKS)
    for i, task in enumerate(TASKS):
        expected = twin(base, task, tasks, dense_twin)(input_ids=ids[i : i + 1]).logits[:, -1]
        torch.testing.assert_close(second.logits[i : i + 1, -1], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_cache_that_other_tasks_filled_is_told(setting):
    name, _, _, model, batch = setting
    given = {"use_cache": True, "input_ids": batch["input_ids"]}
    given |= {"decoder_input_ids": given["input_ids"]} if name == "t5" else {}
    for asked in (
        ({"tasks": "a"}, {"tasks": dts.BASE}) if name == "t5" else ({"tasks": "a"}, {"tasks": ["a", None] * 2})
    ):
        rows = len(asked["tasks"]) if isinstance(asked["tasks"], list) else 4
        part = {key: value[:rows] if key != "use_cache" else value for key, value in given.items()}
        cache = model(**part, **asked).past_key_values
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model(**part, past_key_values=copy.deepcopy(cache), **asked)
        with pytest.warns(UserWarning, match="a cache that .* filled is used for b: what is in it stays theirs"):
            model(**part, past_key_values=copy.deepcopy(cache), tasks="b")
        model.set_task("b")
        with pytest.warns(UserWarning, match="filled is used for b"):
            model(**part, past_key_values=cache)
        model.set_task(None)


@pytest.mark.parametrize("given", [{"use_cache": True}, {"past_key_values": ()}], ids=["asked for", "given"])
def test_a_model_that_runs_once_a_task_has_no_cache_of_all_rows(given, maker):
    base = build("t5")
    model = DTSModel(copy.deepcopy(base))
    for name in "ab":
        model.load_task(name, maker.entries(base, skip=0))
    if "past_key_values" in given:
        given["past_key_values"] = transformers.EncoderDecoderCache(
            transformers.DynamicCache(), transformers.DynamicCache()
        )
    ids = torch.tensor([[1, 5, 7], [2, 4, 9]])
    with pytest.raises(
        ValueError, match="runs batches of several tasks once a task .* give rows of one task at a time"
    ):
        model(input_ids=ids, decoder_input_ids=ids, tasks=["a", "b"], **given)


def test_beams_of_a_model_whose_positions_are_one_row_for_all(maker, dense_twin):
    """They are repeated for each row of the batch, and with beams there are more rows than that."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    parts = transformers.BertConfig(**sizes), transformers.BertConfig(**sizes)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    base = transformers.EncoderDecoderModel(config).double().eval()
    tasks = {name: maker.entries(base, skip=0) for name in "ab"}
    model = DTSModel(copy.deepcopy(base))
    for name, entries in tasks.items():
        model.load_task(name, entries)
    ids = torch.randint(3, 50, (2, 5), generator=torch.Generator().manual_seed(2))
    common = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, decoder_start_token_id=1)
    settings = transformers.GenerationConfig(num_beams=2, **common)
    for options in (common, common | dict(num_beams=2), dict(generation_config=settings)):
        found = model.generate(ids, tasks=["a", "b"], **options)
        for i, task in enumerate("ab"):
            expected = twin(base, task, tasks, dense_twin).generate(ids[i : i + 1], **options)
            assert torch.equal(found[i : i + 1], expected)
        assert bool(model.status()["grouped"]) == (options is not common)
    assert any("beams" in reason for reason in model.status()["grouped"].values())
