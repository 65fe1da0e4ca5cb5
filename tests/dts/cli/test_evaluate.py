"""`dts eval` on tiny models of every kind that it takes."""

import copy
import json

import pytest
import torch

from tests.dts.cli.said import said

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(60))]
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)


def moved(model, by=0.3, seed=0):
    """A fine-tune of a model: every parameter of it moves."""
    torch.manual_seed(seed)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += by * parameter.std(correction=0) * torch.randn_like(parameter)
    return tuned


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """bert/{base,tuned,adapter}, gpt/{...}, vit/{...}: BERT with a tokenizer; adapters that are nearly exact."""
    import dts

    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=40, **SIZES)
    (root / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(root / "vocab.txt"))
    names = {"id2label": {0: "sad", 1: "glad", 2: "calm"}, "label2id": {"sad": 0, "glad": 1, "calm": 2}}
    torch.manual_seed(1)
    body = transformers.BertModel(small)
    classifier = transformers.BertForSequenceClassification(
        transformers.BertConfig(**small.to_diff_dict() | names | {"architectures": None})
    )
    classifier.bert.load_state_dict(body.state_dict())
    gpt = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=70, n_embd=32, n_layer=1, n_head=2, n_positions=48, bos_token_id=0, eos_token_id=0
        )
    )
    vit = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SIZES)
    )
    for name, base, start in (("bert", body, classifier), ("gpt", gpt, gpt), ("vit", vit, vit)):
        base.save_pretrained(root / name / "base")
        moved(start).save_pretrained(root / name / "tuned")
        dts.compress(root / name / "base", root / name / "tuned", root / name / "adapter", rank_fraction=3.0)
        dts.compress(root / name / "base", root / name / "tuned", root / name / "coarse", rank_fraction=0.05)
    tokenizer.save_pretrained(root / "bert" / "tuned")
    return root


def ids(path, count=40, low=4, high=60, classes=3):
    """Rows of token ids and labels, as JSONL."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        length = 3 + i % 5
        rows.append({"input_ids": torch.randint(low, high, (length,), generator=draw).tolist(), "label": i % classes})
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def evaluated(dts, *words):
    done = dts("eval", *words, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_classifier_on_labelled_texts(dts, folder, tmp_path):
    where = folder / "bert"
    lines = [f"w{i % 50} w{(7 * i) % 50}{' w3' * (i % 4)},{['sad', 'glad', 'calm'][i % 3]}" for i in range(30)]
    (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(lines))
    words = (where / "base", where / "tuned", where / "adapter", where / "coarse", "--data", "data.csv")
    report = evaluated(dts, *words, "--plot", "plot.png")
    rows = {row["name"]: row for row in report["models"]}
    tuned, base = report["models"][0], report["models"][1]
    assert (tuned["what"], base["what"]) == ("fine-tune", "base") and tuned["agreement"] is None
    assert rows["adapter"]["agreement"] > 0.9 and rows["adapter"]["kl"] < rows["coarse"]["kl"]
    assert rows["adapter"]["kl"] < base["kl"]
    assert report["inputs"]["labelled"] and not report["inputs"]["made_up"] and report["classes"] == 3
    assert (tmp_path / "plot.png").stat().st_size > 1000
    # the same figures by hand
    model = transformers.AutoModelForSequenceClassification.from_pretrained(where / "tuned").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(where / "tuned")
    with torch.no_grad():
        each = [model(**tokenizer(line.split(",")[0], return_tensors="pt")).logits.argmax().item() for line in lines]
    assert tuned["accuracy"] == pytest.approx(sum(i % 3 == top for i, top in enumerate(each)) / 30)
    shown = dts("eval", *words).stdout
    assert "accuracy" in shown and "adapter: answers as the fine-tune on" in shown and "MADE-UP" not in shown


def test_agreement_and_kl_are_those_of_the_models_themselves(dts, folder, tmp_path):
    import dts as package
    from dts import metrics

    where, data = folder / "bert", ids(tmp_path / "ids.jsonl")
    report = evaluated(dts, where / "base", where / "tuned", where / "coarse", "--data", data, "--batch-size", "7")
    package.adapter.write_checkpoint(where / "base", package.Adapter.load(where / "coarse"), tmp_path / "full")
    rows = [json.loads(line)["input_ids"] for line in data.read_text().splitlines()]
    logits = []
    for place in (tmp_path / "full", where / "tuned"):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(place).eval()
        with torch.no_grad():
            logits.append(torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows]))
    row = report["models"][2]
    assert row["agreement"] == pytest.approx(metrics.agreement(*logits))
    assert row["kl"] == pytest.approx(metrics.kl(*logits), rel=1e-3)


def test_language_model_has_perplexity(dts, folder, tmp_path):
    where, data = folder / "gpt", ids(tmp_path / "ids.jsonl")
    report = evaluated(dts, where / "base", where / "tuned", where / "adapter", "--data", data)
    model = transformers.AutoModelForCausalLM.from_pretrained(where / "tuned").eval()
    lost = count = 0
    for line in data.read_text().splitlines():
        row = torch.tensor([json.loads(line)["input_ids"]])
        with torch.no_grad():
            lost += model(row, labels=row).loss.item() * (row.shape[1] - 1)
        count += row.shape[1] - 1
    tuned = report["models"][0]
    assert tuned["places"] == count and tuned["loss"] == pytest.approx(lost / count, rel=1e-4)
    assert report["models"][2]["agreement"] > 0.85 and report["models"][2]["kl"] < report["models"][1]["kl"]
    assert "perplexity" in dts("eval", where / "base", where / "tuned", where / "adapter", "--data", data).stdout


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_an_adapter_that_keeps_every_bit_is_the_fine_tune(dts, folder, tmp_path, kind):
    where, data = folder / kind, ids(tmp_path / "ids.jsonl")
    assert dts("compress", where / "base", where / "tuned", "-o", "bits", "--method", "exact").exit_code == 0
    report = evaluated(dts, where / "base", where / "tuned", where / "coarse", "bits", "--data", data)
    rows = {row["name"]: row for row in report["models"]}
    tuned, bits = report["models"][0], rows["bits"]
    assert (
        bits["what"] == rows["coarse"]["what"] and bits["agreement"] == 1 and bits["kl"] < 1e-9 < rows["coarse"]["kl"]
    )
    assert bits["loss"] == tuned["loss"] and bits["accuracy"] == tuned["accuracy"]


@pytest.mark.parametrize("kind", ["bert", "gpt", "vit"])
def test_made_up_inputs_are_called_so(dts, folder, kind):
    where = folder / kind
    words = (where / "base", where / "tuned", where / "adapter", "--made-up", "12")
    report = evaluated(dts, *words)
    assert report["inputs"] == report["inputs"] | {"made_up": True, "count": 12, "labelled": False}
    assert report["models"][0]["accuracy"] is None and report["models"][2]["kl"] < report["models"][1]["kl"]
    assert (
        "MADE-UP" in dts("eval", *words).stdout and "made-up inputs" in report["models"][2]["verdict"] or kind == "gpt"
    )


def test_images_from_files(dts, folder, tmp_path):
    image = pytest.importorskip("PIL.Image")
    where = folder / "vit"
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(where / "tuned")
    for i in range(4):
        image.new("RGB", (20, 24), (60 * i, 255 - 60 * i, 99)).save(tmp_path / f"{i}.png")
    (tmp_path / "data.csv").write_text("image,label\n" + "\n".join(f"{i}.png,{i % 3}" for i in range(4)))
    report = evaluated(dts, where / "base", where / "tuned", where / "adapter", "--data", "data.csv")
    assert report["inputs"]["labelled"] and report["models"][2]["agreement"] >= 0.75
    (tmp_path / "0.png").write_text("x")
    wrong = dts("eval", where / "base", where / "tuned", where / "adapter", "--data", "data.csv")
    assert wrong.exit_code == 2 and "cannot be read as an image" in " ".join(wrong.stderr.split())


def test_refusals_say_what_was_found_and_what_to_do(dts, folder, models, tmp_path):
    where = folder / "bert"
    good = (where / "base", where / "tuned", where / "adapter")
    language, images = ([folder / kind / name for name in ("base", "tuned", "adapter")] for kind in ("gpt", "vit"))
    data = ids(tmp_path / "ids.jsonl")
    (tmp_path / "x.csv").write_text("image\nx.png\n")
    for words, found in (
        ((*good, "--text", "x"), "give that too"),
        ((*good, "--made-up", "2", "--split", "x", "--max-length", "9"), "--split and --max-length are about --data"),
        ((*good, "--made-up", "9" * 30), "made-up"),
        ((*good, "--data", data, "--made-up", "3"), "keep one"),
        ((*good, "--data", data, "--seed", "0"), "it goes with --limit"),
        ((*good, "--dtype", "int8"), "float32, bfloat16, float16"),
        ((*good, "--data", data, "--classes", "a,b"), "--classes names 2"),
        ((*good, "--data", data, "--max-length", "41"), "41 tokens is longer than the 40 that the model takes"),
        ((*good, "--tokenizer", "nowhere"), "--tokenizer is about --data"),
        ((*language, "--classes", "a,b"), "is a language model: leave them out"),
        ((*images, "--data", "x.csv", "--max-length", "9"), "is a model of images: leave it out"),
        ((*good, "--data", "none.csv"), "none.csv is not there"),
        ((where / "base", where / "base", where / "adapter"), "BertModel; dts eval compares"),
        ((models / "base", models / "one", where / "adapter"), "names the architecture none"),
        ((where / "base", where / "tuned", models / "base"), "is not an adapter"),
        ((folder / "gpt" / "base", where / "tuned", where / "adapter"), "not the base"),
        ((where / "base", where / "tuned", where / "adapter", where / "adapter"), "given twice"),
    ):
        wrong = dts("eval", *words)
        assert wrong.exit_code == 2, (words, wrong.output)
        assert found in said(wrong), (words, wrong.stderr)
    for bad in ([9999], [True]):
        (tmp_path / "bad.jsonl").write_text(json.dumps({"input_ids": bad, "label": 0}))
        assert "row 1 is no list of token ids from 0 to 63" in said(dts("eval", *good, "--data", "bad.jsonl"))
    assert "x.csv has images, and the model reads texts" in said(dts("eval", *good, "--data", "x.csv"))
    (tmp_path / "texts.txt").write_text("w1 w2")
    gpt = folder / "gpt"
    wrong = dts("eval", gpt / "base", gpt / "tuned", gpt / "adapter", "--data", "texts.txt")
    assert wrong.exit_code == 2 and "--tokenizer" in said(wrong)


def test_token_ids_are_read_as_a_tokenizer_gave_them(dts, folder, tmp_path):
    """Their padding is none of them, their types are told, and what is beyond the model's positions is cut."""
    where = [folder / "bert" / name for name in ("base", "tuned", "coarse")]
    plain = [{"input_ids": [5 + i, 9, 30 + i], "label": i % 3} for i in range(20)]
    padded = [row | {"input_ids": [*row["input_ids"], 0], "attention_mask": [1, 1, 1, 0]} for row in plain]
    typed = [row | {"token_type_ids": [0, 1, 1]} for row in plain]
    long = [row | {"input_ids": row["input_ids"] * 20} for row in plain]
    found = {}
    for name, rows in {"plain": plain, "padded": padded, "typed": typed, "long": long}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found[name] = [row["kl"] for row in evaluated(dts, *where, "--data", f"{name}.jsonl")["models"][1:]]
    assert found["padded"] == pytest.approx(found["plain"], rel=1e-4)
    assert found["typed"] != pytest.approx(found["plain"], rel=1e-4) and all(found["long"])


def test_an_adapter_of_another_task_is_told_by_its_classes(dts, folder, tmp_path):
    import dts as package

    where = folder / "bert"
    config = transformers.AutoConfig.from_pretrained(where / "tuned")
    config.id2label = dict(enumerate("abcdef"))
    torch.manual_seed(3)
    other = moved(transformers.BertForSequenceClassification(config))
    other.bert.load_state_dict(moved(transformers.AutoModel.from_pretrained(where / "base")).state_dict())
    other.save_pretrained(tmp_path / "other")
    package.compress(where / "base", where / "tuned", tmp_path / "three", rank_fraction=0.1)
    package.compress(where / "base", tmp_path / "other", tmp_path / "six", rank_fraction=0.1)
    wrong = dts("eval", where / "base", tmp_path / "other", "three")
    assert wrong.exit_code == 2 and "three has 3 classes; the fine-tune" in said(wrong)
    assert "has 6 (a, b, c, d, e, f; --classes" in said(wrong)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["glad", "calm", "sad"], "named has its classes in another order (glad, calm, sad); the fine-tune"),
        (["one", "two", "three"], "named has other classes (one, two, three); the fine-tune"),
        (["Sad", "happy", "calm"], None),  # one of them in other words
        (["LABEL_0", "LABEL_1", "LABEL_2"], None),
    ],
)
def test_classes_are_compared_with_the_same_classes(dts, folder, tmp_path, names, says):
    import dts as package

    where = folder / "bert"
    package.compress(where / "base", where / "tuned", tmp_path / "named", rank_fraction=0.1, class_names=names)
    words = "eval", where / "base", where / "tuned", "named", "--made-up", "4"
    if says is None:
        assert dts(*words).exit_code == 0
        return
    wrong = dts(*words)
    assert wrong.exit_code == 2 and says in said(wrong)
    assert dts(*words, "--classes", ",".join(names)).exit_code == 0
