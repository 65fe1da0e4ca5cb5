"""Folders: every weight file in one is read, explained or refused; the files of other programs are named."""

import io
import json
import warnings
import zipfile

import numpy
import pytest
import torch
from safetensors.torch import save, save_file

from dts.checkpoint import CheckpointError, NotRead, open_checkpoint

ONE, TWO = {"a.weight": torch.ones(2, 2)}, {"b.weight": torch.zeros(2)}
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.fixture
def folder(tmp_path):
    """Two shards and their index."""
    for state, shard in zip((ONE, TWO), SHARDS):
        save_file(state, tmp_path / shard)
    return index(tmp_path, {"a.weight": SHARDS[0], "b.weight": SHARDS[1]})


def index(folder, where):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def refused(source, *says):
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(source)
    for text in says:
        assert text in str(raised.value), str(raised.value)


def test_an_index_has_to_agree_with_what_is_there(folder):
    assert open_checkpoint(folder).names == ["a.weight", "b.weight"]
    index(folder, {"a.weight": SHARDS[0]})
    refused(folder, f"{SHARDS[1]}: a shard that model.safetensors.index.json does not name")
    save_file(ONE | TWO, folder / SHARDS[1])
    index(folder, {"a.weight": SHARDS[0], "b.weight": SHARDS[1]})
    refused(folder, f"{SHARDS[1]}", "are in another shard: a.weight")
    save_file(TWO | {"c": torch.ones(1)}, folder / SHARDS[1])
    refused(folder, f"{SHARDS[1]}", "does not name: c")
    for path in ("../x.safetensors", "/etc/x.safetensors", "a/../../x", "a\\b", ""):
        index(folder, {"a.weight": path})
        refused(folder, "outside of its folder")


def test_shards_without_all_the_others(folder):
    refused(folder / SHARDS[0], "one of 2 shards", "give the folder")
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "all 2 shards are there, but the index")
    (folder / SHARDS[0]).unlink()
    refused(folder, "1 of 2 shards are missing: 00001")
    save_file(ONE, folder / "model.safetensors")
    refused(folder, f"{SHARDS[1]}: a shard that model.safetensors does not name")


def test_files_beside_the_weights(tmp_path):
    save_file(ONE, tmp_path / "model.safetensors")
    save_file(ONE, tmp_path / "model.fp16.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "consolidated.00.pth"):
        (tmp_path / name).write_bytes(b"what a trainer wrote")
    torch.save(ONE, tmp_path / "pytorch_model.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_checkpoint(tmp_path).names == ["a.weight"]
    torch.save(TWO, tmp_path / "pytorch_model.bin")
    with pytest.warns(NotRead, match="model.safetensors was read, and pytorch_model.bin beside it.*b.weight"):
        assert open_checkpoint(tmp_path).notes
    save_file(TWO, tmp_path / "value_head.safetensors")
    refused(tmp_path, "value_head.safetensors: 1 tensors that model.safetensors does not have, b.weight")


def test_the_cache_of_a_hub_is_links_to_blobs(tmp_path, folder):
    snapshot = tmp_path / "snapshots/1"
    snapshot.mkdir(parents=True)
    for file in folder.glob("*.*"):
        (snapshot / file.name).symlink_to(f"../../{file.name}")
    assert open_checkpoint(snapshot).names == ["a.weight", "b.weight"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["optimizer.pt", "trainer_state.json"], "a trainer's state only"),
        (["zero_to_fp32.py", "latest"], "DeepSpeed"),
        (["__0_0.distcp", ".metadata"], "FSDP"),
        (["weights.pth"], "give the file itself"),
        (["model-q4.gguf"], "GGUF"),
        (["model.onnx"], "ONNX"),
        (["tf_model.h5"], "HDF5"),
        (["flax_model.msgpack"], "Flax"),
        (["x.safetensors", "y.safetensors"], "several weight files"),
    ],
)
def test_folders_without_a_model_say_what_they_are(files, says, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes(b"content")
    refused(tmp_path, says, files[0])


def test_a_trainers_folder_and_a_pipeline_name_what_to_give(tmp_path):
    for name in ("checkpoint-500", "unet", "vae", "scheduler"):
        (tmp_path / name).mkdir()
    save_file(ONE, tmp_path / "checkpoint-500/model.safetensors")
    with pytest.warns(NotRead, match="has no weights of its own: checkpoint-500 inside it was read, the only one"):
        assert open_checkpoint(tmp_path).names == ["a.weight"]
    for name in ("unet", "vae"):
        save_file(ONE, tmp_path / name / "diffusion_pytorch_model.safetensors")
    content = {"_class_name": "X"} | {name: ["diffusers", "X"] for name in ("unet", "vae", "scheduler")}
    (tmp_path / "model_index.json").write_text(json.dumps(content))
    refused(tmp_path, "one of its sub-models", f"{tmp_path}/unet, {tmp_path}/vae")
    assert open_checkpoint(tmp_path / "unet").names == ["a.weight"]


def zipped(names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"1")
    return file.getvalue()


def numpy_file(write, *args, **arrays):
    file = io.BytesIO()
    write(file, *args, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("ending", ["safetensors", "bin", "pt"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x89HDF\r\n\x1a\n123", "HDF5"),
        (b"\x1f\x8b1234567", "gzip"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"error": "no access"}', "no access"),
        (b"PK\x03\x04cut", "damaged zip"),
        (b"x" * 257 + b"ustar" + b"x" * 300, "tar archive"),
        (zipped(["m/code/x.py", "m/data.pkl"]), "TorchScript"),
        (zipped(["config.json", "model.weights.h5"]), "Keras"),
        (zipped(["a.txt"]), "zip archive"),
        (numpy_file(numpy.save, numpy.ones(2)), "numpy array"),
        (numpy_file(numpy.savez, a=numpy.ones(2)), "numpy archive"),
    ],
)
def test_files_of_other_programs_are_named(content, says, ending, tmp_path):
    path = tmp_path / f"model.{ending}"
    path.write_bytes(content)
    refused(path, str(path), says)


def test_wrong_endings_and_torchscript(tmp_path):
    (tmp_path / "model.bin").write_bytes(save(ONE))
    assert open_checkpoint(tmp_path / "model.bin").names == ["a.weight"]
    torch.save(ONE, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "name it model.bin")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("[" * 100_000, "nested deeper"),
        ('{"a": ' * 90 + "1" + "}" * 90, "nested deeper"),
        ('{"a": NaN}', "NaN"),
        ('{"architectures": "Bert", "id2label": [1], "model_type": 3}', "architectures is 'Bert'"),
        ('{"architectures": [3], "id2label": {"x": 1}}', "id2label is"),
        (" " * (64 * 2**20 + 1), "bytes"),
    ],
)
def test_configs_that_are_none(config, says, tmp_path):
    save_file(ONE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    refused(tmp_path, "config.json is damaged", says)
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert open_checkpoint(tmp_path).names == ["a.weight"]


def module(folder, name, weights=None, config="{}"):
    (folder / name).mkdir(exist_ok=True, parents=True)
    (folder / name / "config.json").write_text(config)
    if weights:
        save_file(weights, folder / name / "model.safetensors")


def chain(folder, *paths):
    modules = [{"idx": i, "name": str(i), "path": path, "type": "x"} for i, path in enumerate(paths)]
    (folder / "modules.json").write_text(json.dumps(modules))


def test_all_modules_of_a_sentence_transformer(tmp_path):
    module(tmp_path, "", ONE, '{"model_type": "bert"}')
    module(tmp_path, "1_Pooling")
    module(tmp_path, "2_Dense", {"linear.weight": torch.ones(3, 2)})
    chain(tmp_path, "", "1_Pooling", "2_Dense", "3_Normalize")
    opened = open_checkpoint(tmp_path)
    assert opened.names == ["a.weight", "2_Dense.linear.weight"] and opened.config == {"model_type": "bert"}
    assert opened.shape("2_Dense.linear.weight") == (3, 2)
    assert opened.parts == {"": "", "2_Dense": "2_Dense."} and opened.folder == tmp_path
    assert opened.part_of("2_Dense.linear.weight") == ("2_Dense", "linear.weight")
    assert opened.part_of("a.weight") == ("", "a.weight")
    assert set(opened.files) == {"modules.json", "1_Pooling/config.json", "2_Dense/config.json"}
    chain(tmp_path, "", "1_Pooling")
    refused(tmp_path, "modules.json does not name: 2_Dense")
    chain(tmp_path, "", "../x")
    refused(tmp_path, "outside")
    (tmp_path / "modules.json").write_text("{}")
    refused(tmp_path, "modules.json", "damaged")


def test_the_transformer_may_lie_in_its_own_folder_and_modules_in_a_router(tmp_path):
    module(tmp_path, "0_Transformer", ONE, '{"model_type": "bert"}')
    for side in ("query_0_Dense", "document_0_Dense"):
        module(tmp_path, f"1_Router/{side}", TWO)
    (tmp_path / "1_Router/router_config.json").write_text(
        json.dumps({"types": {"query_0_Dense": "x", "document_0_Dense": "x"}, "structure": {}})
    )
    chain(tmp_path, "0_Transformer", "1_Router")
    opened = open_checkpoint(tmp_path)
    assert opened.names == ["a.weight", "1_Router.query_0_Dense.b.weight", "1_Router.document_0_Dense.b.weight"]
    assert opened.folder == tmp_path / "0_Transformer" and opened.config == {"model_type": "bert"}
    assert opened.part_of("1_Router.query_0_Dense.b.weight") == ("1_Router/query_0_Dense", "b.weight")


def test_what_sentence_transformers_itself_saves(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    transformers = pytest.importorskip("transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from tokenizers import Tokenizer, models

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    ).save_pretrained(tmp_path / "bert")
    model = st.SentenceTransformer(
        modules=[
            modules.Transformer(str(tmp_path / "bert")),
            modules.Pooling(16),
            modules.Dense(16, 8),
            modules.LayerNorm(8),
        ],
        device="cpu",
    )
    model.save(str(tmp_path / "saved"))
    opened, state = open_checkpoint(tmp_path / "saved"), model.state_dict()
    assert len(opened.names) == len([name for name in state if "position_ids" not in name])
    assert torch.equal(opened.load("2_Dense.linear.weight"), state["2.linear.weight"])
    assert opened.shape("3_LayerNorm.norm.weight") == (8,)


@pytest.mark.parametrize("own", ["mood.safetensors", "final.pt", "model-00001-of-00002.safetensors"])
def test_a_run_with_weights_that_are_none_of_its_checkpoints_is_not_passed_over(tmp_path, own):
    (tmp_path / "checkpoint-9").mkdir()
    save_file(ONE, tmp_path / "checkpoint-9" / "model.safetensors")
    torch.save({}, tmp_path / "training_args.bin")
    with pytest.warns(NotRead, match="checkpoint-9 inside it was read"):
        open_checkpoint(tmp_path)
    save_file(ONE, tmp_path / own) if own.endswith("s") else torch.save(ONE, tmp_path / own)
    with pytest.raises(CheckpointError, match=f"weights of its own .*{own}, and checkpoint-9 inside it: give"):
        open_checkpoint(tmp_path)


def test_a_best_checkpoint_that_is_gone_is_said(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file(ONE, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    state = tmp_path / "checkpoint-10" / "trainer_state.json"
    state.write_text(json.dumps({"best_model_checkpoint": "run/checkpoint-5"}))
    with pytest.warns(NotRead, match="the last of 2, as checkpoint-5, the best by .*, is not there"):
        open_checkpoint(tmp_path)


def test_a_state_is_of_files_that_have_some_and_of_one_name(tmp_path):
    save_file(ONE, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match="has one state and no 'ema': leave out #ema"):
        open_checkpoint(f"{tmp_path}/one.safetensors#ema")
    torch.save({"model.ema": ONE, "model": {"ema": ONE}}, tmp_path / "two.pt")
    with pytest.raises(CheckpointError, match="two states would be called model.ema"):
        open_checkpoint(f"{tmp_path}/two.pt#model.ema")
