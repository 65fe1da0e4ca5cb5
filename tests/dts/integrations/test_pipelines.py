"""transformers' own pipelines on a `DTSModel`: as on each task's dense model, one task set or one an input."""

import copy
import logging

import pytest
import torch

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
tokenizers = pytest.importorskip("tokenizers")

import dts  # noqa: E402
from dts.integrations.pipelines import pipeline, with_tasks  # noqa: E402
from dts.nn import DTSModel  # noqa: E402
from tests.dts.nn.classifiers import CLASSES, TEXT, family  # noqa: E402
from tests.versions import TRANSFORMERS_5_0  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "this", "is", "about", "a", "sea", "sky", "war", "."]
MORE = "4 inputs" if TRANSFORMERS_5_0 else "more"  # it makes a list of them first
TEXTS = ["this is a sea", "a war about sky", "is this war .", "sea sky a sky"]  # of one length: nothing is padded
IMAGE = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
)
PICTURES = [Image.new("RGB", (8, 8), color) for color in ("red", "navy", "white", "green")]
DECODER = dict(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3)
NLI = {name: (["entailment", "neutral", "contradiction"], None) for name in ("a", "b")}
TAGS = {"ner": (["O", "B-PER", "I-PER"], None), "pos": (["N", "V"], None)}
THINGS = {"a": (["cat", "dog", "cow"], None), "b": (["car", "bus", "van", "tram"], None)}
SEGMENTS = dict(
    num_encoder_blocks=2,
    depths=[1, 1],
    sr_ratios=[1, 1],
    hidden_sizes=[8, 16],
    num_attention_heads=[1, 2],
    patch_sizes=[3, 3],
    strides=[2, 2],
    mlp_ratios=[2, 2],
    decoder_hidden_size=16,
)
SAME = {"a": (["x", "y"], None), "b": (["x", "y"], None)}  # no classes of their own


def tokenizer():
    vocabulary = {word: i for i, word in enumerate(WORDS + [f"w{i}" for i in range(50 - len(WORDS))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **special
    )


def images():
    return {"image_processor": transformers.ViTImageProcessor(size={"height": 8, "width": 8})}


def detectors():
    return {"image_processor": transformers.YolosImageProcessor(size={"height": 8, "width": 8})}


def words():
    return {"tokenizer": tokenizer()}


# kind of pipeline -> the model's class, config, sizes and tasks; how its inputs are prepared, and these; options
KINDS = {
    "text-classification": ("BertForSequenceClassification", "BertConfig", TEXT, CLASSES, words, TEXTS, {}),
    "token-classification": ("BertForTokenClassification", "BertConfig", TEXT, TAGS, words, TEXTS, {}),
    "ner": (
        "BertForTokenClassification",
        "BertConfig",
        TEXT,
        TAGS,
        words,
        TEXTS,
        {"aggregation_strategy": "simple"},
    ),
    "feature-extraction": ("BertModel", "BertConfig", TEXT, SAME, words, TEXTS, {}),
    "fill-mask": ("BertForMaskedLM", "BertConfig", TEXT, SAME, words, [f"{text} [MASK]" for text in TEXTS], {}),
    "zero-shot-classification": (
        "BertForSequenceClassification",
        "BertConfig",
        TEXT,
        NLI,
        words,
        TEXTS,
        {"candidate_labels": ["sea", "sky", "war"]},
    ),
    "text-generation": (
        "GPT2LMHeadModel",
        "GPT2Config",
        DECODER,
        SAME,
        words,
        TEXTS,
        {"max_new_tokens": 4, "do_sample": False},
    ),
    "image-classification": ("ViTForImageClassification", "ViTConfig", IMAGE, CLASSES, images, PICTURES, {}),
    "object-detection": (  # its head has an output more than there are classes
        "YolosForObjectDetection",
        "YolosConfig",
        IMAGE | dict(image_size=[8, 8], num_detection_tokens=5),
        THINGS,
        detectors,
        PICTURES,
        {"threshold": 0.0},
    ),
    "image-feature-extraction": ("ViTModel", "ViTConfig", IMAGE, SAME, images, PICTURES, {}),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """(name, tasks, their dense models, adapters' model, how to prepare, inputs, options)"""
    architecture, config, sizes, classes, prepare, inputs, options = KINDS[request.param]
    made = family(tmp_path_factory.mktemp("models"), architecture, config, sizes, classes)
    return request.param, list(classes), made.dense, made.model(), prepare, inputs, options


def alike(found, expected):
    """The same words, and numbers that are near."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            alike(found[key], expected[key])
    elif isinstance(expected, (list, tuple)) and expected and isinstance(expected[0], float):
        # a product's error is of the size of the largest of a vector's numbers, not of each: 1.15e-4 with 5.0
        near = 1e-4 * (max(1.0, *map(abs, expected)) if TRANSFORMERS_5_0 else 1.0)
        assert found == pytest.approx(expected, rel=1e-4, abs=near)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected):
            alike(a, b)
    elif isinstance(expected, float) or hasattr(expected, "dtype"):
        assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
    else:
        assert found == expected


@pytest.mark.parametrize("size", [1, 4])
def test_the_task_that_is_set(kind, size, caplog, monkeypatch):
    name, tasks, dense, model, prepare, inputs, options = kind
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    given = prepare()
    if "tokenizer" in given and name == "text-generation":
        given["tokenizer"].padding_side = "left"
    pipe = transformers.pipeline(name, model=model, device="cpu", **given)
    assert "not supported" not in caplog.text
    for task in (*tasks, None):
        model.set_task(task)
        expected = transformers.pipeline(name, model=copy.deepcopy(dense[task]), device="cpu", **given)
        alike(pipe(inputs[0], **options), expected(inputs[0], **options))
        alike(pipe(inputs, batch_size=size, **options), expected(inputs, batch_size=size, **options))
    model.set_task(None)


@pytest.mark.parametrize("size", [1, 3])
def test_a_task_an_input(kind, size):
    name, tasks, dense, model, prepare, inputs, options = kind
    given = prepare()
    if "tokenizer" in given and name == "text-generation":
        given["tokenizer"].padding_side = "left"
    chosen = [*tasks, None, *tasks, None][:4]
    plain = {task: transformers.pipeline(name, model=dense[task], device="cpu", **given) for task in {*chosen}}
    model.set_task(tasks[-1])
    pipe = pipeline(name, model=model, device="cpu", **given)
    theirs = type(plain[tasks[0]])
    assert type(pipe).__name__ == theirs.__name__ and isinstance(pipe, theirs)
    named = [task or dts.BASE for task in chosen]
    one = [plain[task]([given_input] * 2, **options)[0] for task, given_input in zip(chosen, inputs)]
    alike(pipe(inputs, tasks=named, batch_size=size, **options), one)
    alike(pipe(inputs, tasks=tasks[0], batch_size=size, **options), plain[tasks[0]](inputs, **options))
    alike(list(pipe((i for i in inputs), tasks=named, **options)), one)
    alike(pipe(inputs[0], tasks=tasks[0], **options), plain[tasks[0]](inputs[0], **options))
    alike(pipe(inputs[0], **options), expected_of(dense, tasks[-1], name, given)(inputs[0], **options))
    assert model.status()["current"] == [{tasks[-1]: 1.0}]
    model.set_task(None)


def expected_of(dense, task, name, given):
    return transformers.pipeline(name, model=dense[task], device="cpu", **given)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return family(tmp_path_factory.mktemp("texts"))


def test_every_class_of_a_row_is_its_tasks(texts):
    pipe = pipeline("text-classification", model=texts.model(), tokenizer=tokenizer(), device="cpu", tasks="topic")
    found = pipe(TEXTS[:3], tasks=["mood", "topic", "many"], top_k=None, batch_size=3)
    assert [{one["label"] for one in row} for row in found] == [{*CLASSES[t][0]} for t in ("mood", "topic", "many")]
    assert pipe(TEXTS)[0]["label"] in CLASSES["topic"][0]
    mixed = pipe(TEXTS[:2], tasks=[{"mood": 0.5}, {"mood": 1.0}], batch_size=2)
    assert all(row["label"] in CLASSES["mood"][0] for row in mixed)


def test_workers_prepare_inputs_with_their_tasks(texts):
    pipe = pipeline("text-classification", model=texts.model(), tokenizer=tokenizer(), device="cpu")
    tasks = ["mood", "topic", "many", "stars"]
    alike(pipe(TEXTS, tasks=tasks, batch_size=2, num_workers=2), pipe(TEXTS, tasks=tasks))


def test_tasks_that_do_not_fit_are_refused(texts):
    pipe = pipeline("text-classification", model=texts.model(), tokenizer=tokenizer(), device="cpu")
    with pytest.raises(ValueError, match="tasks has 1 items, one an input, but there are 4 inputs"):
        pipe(TEXTS, tasks=["mood"])
    with pytest.raises(ValueError, match="tasks has 1 items, one an input, but there are " + MORE):
        list(pipe((text for text in TEXTS), tasks=["mood"]))
    with pytest.raises(ValueError, match="no task 'none'"):
        pipe(TEXTS, tasks="none")
    with pytest.raises(ValueError, match='"auto" is for'):
        pipe(TEXTS, tasks="auto")
    dense = transformers.pipeline("text-classification", model=texts.dense["mood"], tokenizer=tokenizer(), device="cpu")
    with pytest.raises(TypeError, match="tasks= is for a DTSModel"):
        with_tasks(dense)


def test_generation_takes_tasks_without_help(tmp_path):
    """transformers' own pipeline hands what it does not know to generate."""
    made = family(tmp_path, "GPT2LMHeadModel", "GPT2Config", DECODER, SAME)
    words = tokenizer()
    words.padding_side = "left"
    pipe = transformers.pipeline("text-generation", model=made.model(), tokenizer=words, device="cpu")
    options = dict(max_new_tokens=4, do_sample=False)
    for task in "ab":
        plain = transformers.pipeline("text-generation", model=made.dense[task], tokenizer=words, device="cpu")
        alike(pipe(TEXTS[0], tasks=task, **options), plain(TEXTS[0], **options))


def test_segments_are_named_by_their_task(tmp_path):
    """A head that is a convolution: one task at a time."""
    made = family(tmp_path, "SegformerForSemanticSegmentation", "SegformerConfig", SEGMENTS, THINGS)
    model = made.model()
    prepare = {"image_processor": transformers.SegformerImageProcessor(size={"height": 16, "width": 16})}
    pipe = pipeline("image-segmentation", model=model, device="cpu", **prepare)
    generator = torch.Generator().manual_seed(5)
    pixels, labels = torch.randn(2, 3, 16, 16, generator=generator), torch.randint(0, 3, (2, 16, 16))
    for task in THINGS:
        plain = transformers.pipeline("image-segmentation", model=made.dense[task], device="cpu", **prepare)
        found, expected = pipe(PICTURES, tasks=task), plain(PICTURES)
        assert [[one["label"] for one in row] for row in found] == [[one["label"] for one in row] for row in expected]
        wanted = made.dense[task](pixels, labels=labels)
        torch.testing.assert_close(model(pixels, labels=labels, tasks=task).loss, wanted.loss, rtol=1e-4, atol=1e-4)
    mixed = pipe(PICTURES[:2], tasks=["a", "b"])
    assert {one["label"] for one in mixed[1]} <= set(THINGS["b"][0])
    with pytest.raises(ValueError, match=r"outputs of different sizes, \[\[3, .*\[4, .*rows of one of these tasks"):
        model(pixels, tasks=["a", "b"])


def test_a_plain_module_is_no_pipelines_model():
    model = DTSModel(torch.nn.Linear(2, 3))
    assert not hasattr(model, "config")
