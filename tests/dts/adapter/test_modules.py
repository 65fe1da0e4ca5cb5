"""Models in several modules (sentence-transformers): all tensors are written where they belong, with their files."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import dts
from dts.adapter import compress, write_checkpoint
from dts.adapter.modules import write_module_files
from dts.checkpoint import open_checkpoint

transformers = pytest.importorskip("transformers")
library = pytest.importorskip("sentence_transformers")
models = pytest.importorskip("sentence_transformers.models")


def sentence_model(folder, seed, base=None):
    """A folder of a tiny BERT, mean pooling, a dense layer of 20 dimensions and a normalisation."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=30, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=40, max_position_embeddings=16)  # fmt: skip
    inner = folder.with_name(folder.name + "-bert")
    transformers.BertModel(config).save_pretrained(inner)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (inner / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(inner / "vocab.txt")).save_pretrained(inner)
    words = models.Transformer(str(inner))
    model = library.SentenceTransformer(modules=[words, models.Pooling(24), models.Dense(24, 20), models.Normalize()],
                                        device="cpu")  # fmt: skip
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * seed * torch.randn_like(p)
    model.save(str(folder))
    return model


def opened(folder):
    """The folder with every module's tensors, those of a folder ``x`` called ``x.<name>``."""
    checkpoint = open_checkpoint(folder)
    tensors = dict(checkpoint.tensors)
    for file in folder.glob("*/model.safetensors"):
        prefix = file.parent.name + "."
        inner = open_checkpoint(file).tensors
        tensors |= {name if name.startswith(prefix) else prefix + name: tensor for name, tensor in inner.items()}
    return replace(checkpoint, tensors=tensors)


def test_every_module_is_written_and_loads(tmp_path):
    base = sentence_model(tmp_path / "base", 0)
    tuned = sentence_model(tmp_path / "tuned", 1)
    compress(opened(tmp_path / "base"), opened(tmp_path / "tuned"), tmp_path / "adapter", rank_fraction=1)
    adapter = dts.Adapter.load(tmp_path / "adapter")
    assert any(name.endswith("_Dense.linear.weight") for name in adapter.entries)
    write_checkpoint(opened(tmp_path / "base"), adapter, tmp_path / "full")
    dense = next((tmp_path / "full").glob("*_Dense"))
    assert set(load_file(dense / "model.safetensors")) == {"linear.weight", "linear.bias"}
    full = library.SentenceTransformer(str(tmp_path / "full"), device="cpu")
    ours, theirs, before = (torch.tensor(m.encode(["a b c", "j i"])) for m in (full, tuned, base))
    assert ours.shape == (2, 20) and (ours - theirs).norm() < 0.5 * (before - theirs).norm()


def test_modules_that_only_the_fine_tune_has(tmp_path):
    sentence_model(tmp_path / "base", 0)
    tuned = sentence_model(tmp_path / "tuned", 1)
    compress(tmp_path / "base-bert", opened(tmp_path / "tuned"), tmp_path / "adapter", rank_fraction=1)
    write_checkpoint(tmp_path / "base-bert", dts.Adapter.load(tmp_path / "adapter"), tmp_path / "full")
    full = library.SentenceTransformer(str(tmp_path / "full"), device="cpu")
    assert torch.tensor(full.encode(["a b"])).shape == torch.tensor(tuned.encode(["a b"])).shape == (1, 20)


@pytest.mark.parametrize("name", ["../x.json", "a/../x.json", "2_Dense/run.py", "other/config.json", "x.json"])
def test_files_that_belong_to_no_module_are_refused(name, tmp_path):
    files = {"modules.json": [{"path": "2_Dense"}], name: {}}
    with pytest.raises(ValueError, match="belongs to no module"):
        write_module_files(files, tmp_path)
    write_module_files({"modules.json": [{"path": "2_Dense"}], "2_Dense/config.json": {"a": 1}}, tmp_path)
    assert json.loads((tmp_path / "2_Dense" / "config.json").read_text()) == {"a": 1}
