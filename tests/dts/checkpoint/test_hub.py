"""A hub id at a revision, from a cache laid out as huggingface_hub lays it out, without a network."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from dts.checkpoint import CheckpointError, fingerprint, open_checkpoint
from dts.checkpoint.hub import split_revision

pytest.importorskip("huggingface_hub")
COMMITS = {"main": "1" * 40, "v2": "2" * 40}


def fill(cache, name, by_commit):
    """A repository in the cache: blobs, snapshots that link to them, and a ref of each revision."""
    repository = cache / f"models--{name.replace('/', '--')}"
    for revision, commit in COMMITS.items():
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        for file in sorted(by_commit[revision].iterdir()):
            blob = repository / "blobs" / f"{revision}-{file.name}"
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Two revisions of org/base, a BERT, whose weights differ."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    made = {}
    for revision in COMMITS:
        made[revision] = tmp_path_factory.mktemp(revision)
        transformers.BertModel(config).save_pretrained(made[revision])
    cache = tmp_path_factory.mktemp("hub")
    fill(cache, "org/base", made)
    return cache


def opened(cache, name, **options):
    return open_checkpoint(name, cache_dir=str(cache), local_files_only=True, **options)


def test_each_revision_is_its_own_checkpoint(cache):
    main, tagged = opened(cache, "org/base"), opened(cache, "org/base", revision="v2")
    assert (main.revision, tagged.revision) == (COMMITS["main"], COMMITS["v2"])
    assert fingerprint(main) != fingerprint(tagged)
    for other in (opened(cache, "org/base@v2"), opened(cache, "org/base", revision=COMMITS["v2"])):
        assert fingerprint(other) == fingerprint(tagged) and other.source == "org/base"
    with pytest.raises(CheckpointError, match="hub did not give it at v3"):
        opened(cache, "org/base", revision="v3")
    with pytest.raises(CheckpointError, match="twice"):
        opened(cache, "org/base@v2", revision="main")


def test_at_in_a_path_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org@v2").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "org@v2/model.safetensors")
    assert split_revision("org@v2") == ("org@v2", None) and split_revision("org/base@v2") == ("org/base", "v2")
    assert open_checkpoint("org@v2").names == ["a"]


def test_subfolder_and_variant(tmp_path):
    (tmp_path / "unet").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "unet/model.safetensors")
    save_file({"a": torch.zeros(2).half()}, tmp_path / "unet/model.fp16.safetensors")
    assert open_checkpoint(tmp_path, subfolder="unet").dtype("a") == torch.float32
    assert open_checkpoint(tmp_path, subfolder="unet", variant="fp16").dtype("a") == torch.float16


def test_a_model_is_checked_against_the_revision_that_is_loaded(cache, tmp_path):
    import dts

    base = opened(cache, "org/base", revision="v2")
    tuned = {name: base.load(name) + 0.01 * torch.randn(base.shape(name)) for name in base.names}
    adapter = dts.compress(base, tuned, out=tmp_path / "a", budget=0.5)
    given = {"cache_dir": str(cache), "local_files_only": True}
    for name, options in (("org/base", {"revision": "v2"}), ("org/base@v2", {})):
        model = dts.DTSModel.from_pretrained(name, adapters={"a": adapter}, **options, **given)
        weight = base.load("embeddings.word_embeddings.weight")
        assert torch.equal(model.model.embeddings.word_embeddings.weight, weight)
    for options in ({}, {"revision": "main"}):
        with pytest.raises(ValueError, match="is not the base of"):
            dts.DTSModel.from_pretrained("org/base", adapters={"a": adapter}, **options, **given)


def test_what_is_of_a_hub_alone_is_refused_of_a_folder_and_of_a_model_in_memory(tmp_path):
    import dts

    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path, "main").names == ["a"]  # which says nothing
    for source in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        with pytest.raises(ValueError, match=r"a revision \(v2\) is of a hub id"):
            open_checkpoint(source, "v2")
    with pytest.raises(ValueError, match="revision='v2' and variant='fp16': of a model on disk"):
        open_checkpoint({"a": torch.ones(2)}, "v2", variant="fp16")
    with pytest.raises(ValueError, match="revision='v2': of a model on disk"):
        open_checkpoint(open_checkpoint(tmp_path), "v2")
    with pytest.raises(ValueError, match=r"a revision \(v2\) is of a hub id"):
        dts.DTSModel.from_pretrained(tmp_path, revision="v2")


def test_a_plan_is_of_the_checkpoint_in_the_cache_that_is_named(cache):
    import dts

    given = {"cache_dir": str(cache), "local_files_only": True, "length": 8}
    model = dts.DTSModel.from_pretrained("org/base@v2", memory="8GB", **given)
    weight = opened(cache, "org/base", revision="v2").load("embeddings.word_embeddings.weight")
    assert torch.equal(model.model.embeddings.word_embeddings.weight, weight)
    assert model.plan.as_dict()["rows"] and model.plan.model == "org/base@v2"


def test_verbs_take_a_revision(cache, tmp_path):
    base = opened(cache, "org/base", revision="v2")
    save_file({name: base.load(name) * 1.01 for name in base.names}, tmp_path / "tuned.safetensors")
    script = (
        "import sys, json; from dts.cli.app import app\n"
        "for words in json.loads(sys.argv[1]):\n    app(words, prog_name='dts', standalone_mode=False)"
    )
    words = [
        ["compress", "org/base", "tuned.safetensors", "--revision", "v2", "-o", "a", "-s", "50%"],
        ["verify", "a", "org/base@v2"],
        ["verify", "a", "org/base", "--revision", "v2"],
        ["diff", "org/base", "org/base", "--revision", "v2", "--finetuned-revision", "main"],
        ["apply", "org/base", "a", "--revision", "v2", "-o", "full"],
        ["verify", "a", "org/base"],
    ]
    live = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(words)], cwd=tmp_path, env=live, capture_output=True, text=True
    )
    assert "other values" in done.stdout.replace("\n", " "), done.stdout + done.stderr
    assert done.stdout.count("whole, and made for org/base@v2") == 2, done.stdout + done.stderr
    assert set(load_file(tmp_path / "full/model.safetensors")) == set(base.names)
