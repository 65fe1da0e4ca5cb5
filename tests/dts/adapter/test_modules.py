"""Models in several modules (sentence-transformers): all tensors are written where they belong, with their files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import dts
from dts.adapter.modules import plain, write_modules
from dts.checkpoint import open_checkpoint
from dts.cli.app import app

transformers = pytest.importorskip("transformers")
library = pytest.importorskip("sentence_transformers")
models = pytest.importorskip("sentence_transformers.models")
SENTENCES = ["a b c", "j i"]


def sentence_model(folder, seed, dense=True):
    """A folder of a tiny BERT and mean pooling, and of a dense layer of 20 dimensions and a normalisation."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    inner = folder.with_name(folder.name + "-bert")
    transformers.BertModel(config).save_pretrained(inner)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (inner / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(inner / "vocab.txt")).save_pretrained(inner)
    chain = [models.Transformer(str(inner), max_seq_length=12), models.Pooling(24)]
    if dense:
        chain += [models.Dense(24, 20), models.Normalize()]
    model = library.SentenceTransformer(modules=chain, device="cpu")
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * seed * torch.randn_like(p)
    model.save(str(folder))
    return model


def older(folder):
    """The transformer in a folder of its own, as version 1 of the library wrote it."""
    place = folder / "0_Transformer"
    place.mkdir()
    for file in list(folder.iterdir()):
        if file.is_file() and file.name not in ("modules.json", "README.md", "config_sentence_transformers.json"):
            file.rename(place / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))


def applied(cli, base, tuned, adapter, out):
    """Through the command line, as a fresh process would."""
    dts.compress(base, tuned, out=adapter, rank_fraction=1)
    result = cli.invoke(app, ["apply", str(base), str(adapter), "-o", str(out)])
    assert result.exit_code == 0, result.output
    return library.SentenceTransformer(str(out), device="cpu")


@pytest.fixture
def cli():
    from typer.testing import CliRunner

    return CliRunner()


@pytest.mark.parametrize("layout", ["new", "older", "pooling"])
def test_the_library_loads_what_is_written(tmp_path, cli, layout):
    base, tuned = (
        sentence_model(tmp_path / name, seed, layout != "pooling") for name, seed in (("base", 0), ("tuned", 1))
    )
    if layout == "older":
        older(tmp_path / "base"), older(tmp_path / "tuned")
    full = applied(cli, tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", tmp_path / "full")
    ours, theirs, before = (torch.tensor(m.encode(SENTENCES)) for m in (full, tuned, base))
    assert ours.shape == theirs.shape and (ours - theirs).norm() < 0.5 * (before - theirs).norm()
    assert full.max_seq_length == tuned.max_seq_length == 12
    want, got = (
        {str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*.safetensors")}
        for name in ("tuned", "full")
    )
    assert want == got
    for file in want:
        assert set(load_file(tmp_path / "tuned" / file)) == set(load_file(tmp_path / "full" / file))
    adapter = dts.Adapter.load(tmp_path / "adapter")
    assert "modules" not in adapter.config  # the base's
    with torch.no_grad():
        for name, tensor in adapter.apply(tmp_path / "base"):
            place, inner = open_checkpoint(tmp_path / "full").part_of(name)
            assert torch.equal(tensor, load_file(tmp_path / "full" / place / "model.safetensors")[inner])


def test_modules_that_only_the_fine_tune_has(tmp_path, cli):
    sentence_model(tmp_path / "base", 0)
    tuned = sentence_model(tmp_path / "tuned", 1)
    full = applied(cli, tmp_path / "base-bert", tmp_path / "tuned", tmp_path / "adapter", tmp_path / "full")
    assert full.encode(SENTENCES).shape == tuned.encode(SENTENCES).shape == (2, 20)
    assert cli.invoke(app, ["verify", str(tmp_path / "adapter"), str(tmp_path / "base-bert")]).exit_code == 0


def test_a_fine_tune_in_one_piece_is_written_in_one_piece(tmp_path, cli):
    sentence_model(tmp_path / "base", 0, dense=False)
    sentence_model(tmp_path / "tuned", 1, dense=False)
    for file in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (tmp_path / "tuned" / file).unlink(missing_ok=True)
    dts.compress(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "adapter", rank_fraction=1)
    assert (
        cli.invoke(
            app, ["apply", *(str(tmp_path / n) for n in ("base", "adapter")), "-o", str(tmp_path / "full")]
        ).exit_code
        == 0
    )
    assert not (tmp_path / "full" / "modules.json").exists()
    transformers.AutoModel.from_pretrained(tmp_path / "full")


def test_wrapped_modules(tmp_path, cli):
    sentence_model(tmp_path / "base", 0)
    tuned = sentence_model(tmp_path / "tuned", 1)
    for file, wrapper in (("model.safetensors", "module."), ("2_Dense/model.safetensors", "_orig_mod.")):
        state = load_file(tmp_path / "tuned" / file)
        save_file({wrapper + name: tensor for name, tensor in state.items()}, tmp_path / "tuned" / file)
    full = applied(cli, tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", tmp_path / "full")
    ours, theirs = (torch.tensor(m.encode(SENTENCES)) for m in (full, tuned))
    assert ours.shape == (2, 20) and (ours - theirs).norm() < 0.5 * theirs.norm()
    assert cli.invoke(app, ["verify", str(tmp_path / "adapter"), str(tmp_path / "base")]).exit_code == 0


GOOD = {
    "files": {"modules.json": [{"path": ""}, {"path": "2_Dense"}], "2_Dense/config.json": {"a": 1}},
    "parts": {"": "", "2_Dense": "2_Dense."},
}


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "a/../x.json",
        "2_Dense/run.py",
        "other/config.json",
        "x.json",
        "2_Dense/../x.json",
        "2_Dense/./x.json",
        "/2_Dense/x.json",
        "2_Dense\\x.json",
        "2_Dense/model.safetensors.index.json",
        "2_Dense//x.json",
    ],
)
def test_files_that_belong_to_no_module_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="belongs to no module"):
        write_modules(GOOD | {"files": GOOD["files"] | {name: {}}}, tmp_path)
    write_modules(GOOD, tmp_path)
    assert json.loads((tmp_path / "2_Dense" / "config.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    "parts",
    [
        {"": "", "../x": "../x."},
        {"": "", "2_Dense": "3_Dense."},
        {"": "", "x": "x."},
        {"2_Dense": "2_Dense."},
        {"": "", "2_Dense": ""},
        {"": 1},
    ],
)
def test_parts_that_are_no_modules_are_refused(parts):
    assert plain(GOOD) and not plain(GOOD | {"parts": parts})
