"""Merging whole models: alignment, streaming, what is written."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

import dts
from dts.adapter.errors import NoEffect
from dts.checkpoint import Checkpoint, Lazy, Mismatch, open_checkpoint
from dts.merge.outcome import LeftAtBase, NotMerged
from dts.merge.tensor import TensorInfo

SIZES = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    vocab_size=40,
    max_position_embeddings=12,
)


def states(models=3, seed=0):
    """A base and fine-tunes of it that differ a little."""
    generator = torch.Generator().manual_seed(seed)
    base = {
        "body.a.weight": torch.randn(6, 5, generator=generator),
        "body.a.bias": torch.randn(6, generator=generator),
        "body.count": torch.tensor(7),
    }
    tuned = [
        {
            name: value + 0.1 * torch.randn(value.shape, generator=generator) if value.dim() else value
            for name, value in base.items()
        }
        for _ in range(models)
    ]
    return base, tuned


@pytest.mark.parametrize("method", dts.merge.METHODS)
def test_a_merged_model_is_the_base_plus_the_merged_delta(method):
    base, tuned = states()
    merged = dts.merge(base, tuned, method, seed=3)
    chosen = dts.merge.METHODS[method]
    prepared = {}
    if method == "ties":
        flat = torch.cat(
            [torch.stack([m[n] - base[n] for m in tuned]).flatten(1) for n in ("body.a.weight", "body.a.bias")], dim=1
        ).abs()
        prepared = {"thresholds": flat.topk(round(0.2 * flat.shape[1])).values[:, -1].tolist()}
    for name in ("body.a.weight", "body.a.bias"):
        deltas = torch.stack([m[name] - base[name] for m in tuned])
        info = TensorInfo(name, 3, prepared)
        options = {key: option.default for key, option in chosen.options.items()}
        torch.testing.assert_close(merged[name], base[name] + chosen.function(deltas, info, **options))
    assert torch.equal(merged["body.count"], base["body.count"])


def test_average_needs_no_base():
    _, tuned = states()
    merged = dts.merge(None, tuned)
    torch.testing.assert_close(merged["body.a.weight"], sum(m["body.a.weight"] for m in tuned) / 3)
    with pytest.raises(ValueError, match="ties merges differences to a base.*without a base: average"):
        dts.merge(None, tuned, "ties")


def test_heads_are_each_tasks_own():
    base, tuned = states(2)
    for rows, model in zip((2, 2), tuned):
        model["classifier.weight"] = torch.ones(rows, 6)
    with pytest.warns(NotMerged, match="2 tensors are not in the merged model: classifier.weight .state dict 1."):
        assert "classifier.weight" not in dts.merge(base, tuned)
    assert "classifier.weight" not in dts.merge(None, tuned)


def test_prefixes_are_aligned_and_names_are_the_bases():
    base, tuned = states(2)
    tuned = [{f"model.{name}": value for name, value in m.items()} for m in tuned]
    assert set(dts.merge(base, tuned)) == set(base)


def test_rows_that_one_model_added_to_the_vocabulary_are_kept():
    base, tuned = states(2)
    for model in (base, *tuned):
        model["body.embed.weight"] = torch.arange(40.0).view(8, 5) + len(model)
    tuned[0]["body.embed.weight"] = torch.cat([tuned[0]["body.embed.weight"], torch.ones(2, 5)])
    merged = dts.merge(base, tuned)["body.embed.weight"]
    assert torch.equal(merged[8:], torch.ones(2, 5)) and merged.shape == (10, 5)
    other = [tuned[0], dict(tuned[1])]
    other[1]["body.embed.weight"] = torch.cat([tuned[1]["body.embed.weight"], torch.zeros(2, 5)])
    with pytest.raises(Mismatch, match="body.embed.weight: rows were added for other tokens .*resize the models"):
        dts.merge(base, other)
    other[1]["body.embed.weight"][8:] = 1
    assert torch.equal(dts.merge(base, other)["body.embed.weight"], merged)


def test_an_enlarged_model_brings_its_tokenizer_and_size(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))
    for name, rows in (("base", 40), ("a", 40), ("b", 44)):
        with torch.no_grad():
            for p in base.parameters():
                p += 0.002 * torch.randn_like(p) * (name != "base")
        base.resize_token_embeddings(rows, mean_resizing=False)
        base.save_pretrained(tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"of": name}))
    accounts = []
    dts.merge(tmp_path / "base", [tmp_path / "a", tmp_path / "b"], out=tmp_path / "m", account=accounts.append)
    model, found = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(found.values()) and model.config.vocab_size == 44
    assert torch.equal(model.transformer.wte.weight[40:], base.transformer.wte.weight[40:])
    assert json.loads((tmp_path / "m" / "tokenizer.json").read_text()) == {"of": "b"}
    row = next(f for f in accounts[0].of(str(tmp_path / "b")) if f.name == "transformer.wte.weight")
    assert (row.what, row.why) == ("changed", "4 new rows kept")


@pytest.mark.parametrize("method, options", [("average", {}), ("task_arithmetic", {"scale": 0})])
def test_a_merge_that_gives_the_base_is_refused(method, options, tmp_path):
    base, tuned = states(2)
    tuned = tuned if options else [tuned[0], dict(base)]
    reason = "gives the base itself" if options else "does not differ from the base"
    with pytest.raises(NoEffect, match=reason):
        dts.merge(base, tuned, method, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_what_became_of_every_tensor_of_every_model():
    base, tuned = states(2)
    tuned[0]["classifier.weight"] = torch.ones(2, 6)
    base["pooler.weight"], tuned[1]["pooler.weight"] = torch.ones(6, 6), 2 * torch.ones(6, 6)
    tuned[1]["body.a.bias"] = base["body.a.bias"]
    found = []
    dts.merge(base, tuned, account=found.append)
    by_model = {m: {f.name: f.what for f in found[0].of(m)} for m in found[0].counts}
    assert by_model["state dict 1"] == {
        "body.a.weight": "changed",
        "body.a.bias": "changed",
        "body.count": "skipped",
        "classifier.weight": "skipped",
    }
    assert by_model["state dict 2"]["body.a.bias"] == "equal"
    assert by_model["merged"] == {
        "body.a.weight": "changed",
        "body.a.bias": "changed",
        "body.count": "equal",
        "pooler.weight": "equal",
    }


def test_tensors_that_a_method_leaves_at_the_base_are_named():
    """One model's vector moved by less than float16 can say once it is divided by the number of models."""
    base, tuned = states(2)
    base, tuned = half(base), [half(state) for state in tuned]
    tuned[1]["body.a.bias"] = base["body.a.bias"].clone()
    tuned[0]["body.a.bias"] = torch.nextafter(base["body.a.bias"], torch.tensor(torch.inf, dtype=torch.float16))
    found = []
    with pytest.warns(LeftAtBase, match="task_arithmetic leaves 1 tensors at the base .* body.a.bias"):
        merged = dts.merge(base, tuned, "task_arithmetic", scale=0.25, account=found.append)
    assert torch.equal(merged["body.a.bias"], base["body.a.bias"])
    fate = next(f for f in found[0].of("merged") if f.name == "body.a.bias")
    assert fate.what == "equal" and "models differ" in fate.why


def half(state):
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


def test_a_dry_run_says_what_the_merge_would(tmp_path):
    base, tuned = states(2)
    found, out = [], tmp_path / "out"
    nbytes = dts.merge(base, tuned, out=out, dry_run=True, account=found.append)
    assert not out.exists()
    state = dts.merge(base, tuned, account=found.append)
    assert found[0] == found[1] and nbytes == sum(value.nbytes for value in state.values())
    with pytest.raises(NoEffect, match="gives the base itself"):
        dts.merge(base, tuned, "task_arithmetic", out, dry_run=True, scale=0)


def test_models_in_modules_are_merged_module_by_module(tmp_path):
    """A sentence-transformers folder comes out as one, with every module's weights where its class looks for them."""
    base = in_modules(tmp_path / "base", 0)
    tuned = [in_modules(tmp_path / f"tuned{i}", i + 1) for i in range(2)]
    out = dts.merge(base, tuned, out=tmp_path / "merged")
    assert json.loads((out / "modules.json").read_text()) == json.loads((base / "modules.json").read_text())
    assert (out / "2_Dense" / "config.json").is_file() and not (out / "config.json").exists()
    for place in ("0_Transformer", "2_Dense"):
        given = [load_file(folder / place / "model.safetensors") for folder in tuned]
        merged = load_file(out / place / "model.safetensors")
        assert merged.keys() == given[0].keys()
        for name, value in merged.items():
            torch.testing.assert_close(value, (given[0][name] + given[1][name]) / 2)


def in_modules(folder, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    rows += [{"idx": 1, "name": "1", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    for place, name in (("0_Transformer", "layer.weight"), ("2_Dense", "linear.weight")):
        (folder / place).mkdir(parents=True)
        save_file({name: torch.randn(12, 8, generator=generator)}, folder / place / "model.safetensors")
        (folder / place / "config.json").write_text("{}")
    (folder / "modules.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "ties", "dare", "dare_ties", "breadcrumbs"])
def test_masks_that_all_have_stay_and_other_infinities_are_named(method):
    """They came out as NaN, without a word."""
    torch.manual_seed(0)
    mask = torch.full((8, 8), -float("inf")).triu(1)
    base = {"a.weight": torch.randn(24, 24), "mask": mask}
    tuned = [{"a.weight": base["a.weight"] + 0.1 * torch.randn(24, 24), "mask": mask.clone()} for _ in range(2)]
    merged = dts.merge(base, tuned, method)
    assert torch.equal(merged["mask"], mask) and merged["a.weight"].isfinite().all()
    assert not torch.equal(merged["a.weight"], base["a.weight"])
    for strange in (float("nan"), float("inf")):
        tuned[1]["a.weight"][3, 3] = strange
        with pytest.raises(ValueError, match="a.weight has NaN, or infinite .* in state dict.*exclude="):
            dts.merge(base, tuned, method)


def test_an_average_without_a_base_keeps_masks_and_makes_no_nan():
    mask = torch.full((8, 8), -float("inf")).triu(1)
    models = [{"a.weight": torch.ones(4, 4) * i, "mask": mask.clone()} for i in range(2)]
    assert torch.equal(dts.merge(None, models)["mask"], mask)
    models[1]["mask"][0, 1] = float("inf")
    with pytest.raises(ValueError, match="mask has NaN, or infinite"):
        dts.merge(None, models)


def test_excluded_tensors_stay_the_bases():
    base, tuned = states()
    merged = dts.merge(base, tuned, exclude=[r"\.bias$"])
    assert torch.equal(merged["body.a.bias"], base["body.a.bias"])
    assert not torch.equal(merged["body.a.weight"], base["body.a.weight"])


def test_all_mismatches_of_all_models_in_one_error():
    base, tuned = states(2)
    tuned[0]["body.a.weight"] = torch.ones(6, 4)
    tuned[1]["body.a.weight"] = torch.ones(3, 3)
    with pytest.raises(Mismatch) as error:
        dts.merge(base, tuned)
    assert "[6, 4]" in str(error.value) and "[3, 3]" in str(error.value)


def test_half_precision_sums_in_float32():
    base, tuned = states()
    half = lambda state: {n: v.bfloat16() if v.dim() else v for n, v in state.items()}  # noqa: E731
    merged = dts.merge(half(base), [half(m) for m in tuned])
    exact = sum(m["body.a.weight"].bfloat16().float() for m in tuned) / 3
    assert merged["body.a.weight"].dtype == torch.bfloat16
    assert (merged["body.a.weight"].float() - exact).abs().max() <= exact.abs().max() * 2**-8
    assert dts.merge(half(base), [half(m) for m in tuned], dtype=torch.float32)["body.a.bias"].dtype == torch.float32


def counted(state: dict, live: set) -> Checkpoint:
    """A checkpoint whose loaded tensors are in ``live`` as long as somebody holds them."""

    def load(name):
        value = state[name].clone()
        live.add(id(value))
        most[0] = max(most[0], len(live))
        weakref.finalize(value, live.discard, id(value))
        return value

    most = live.most
    return Checkpoint("counted", {n: Lazy(tuple(v.shape), v.dtype, lambda n=n: load(n)) for n, v in state.items()})


class Live(set):
    def __init__(self):
        super().__init__()
        self.most = [0]


@pytest.mark.parametrize("method", ["ties", "tsv_merge"])
def test_holds_one_tensor_of_one_model_at_a_time(method, tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {f"body.{i}.weight": torch.randn(8, 8, generator=generator) for i in range(20)}
    live = Live()
    opened = [counted({n: v + torch.randn(8, 8, generator=generator) for n, v in base.items()}, live) for _ in range(4)]
    dts.merge(counted(base, live), opened, method, tmp_path / "merged")
    assert live.most[0] <= 2  # what pairing or adding looks at; the stack of deltas is a tensor of its own


def test_progress_counts_every_tensor():
    base, tuned = states()
    seen = []
    dts.merge(base, tuned, progress=lambda *at: seen.append(at))
    assert seen[-1][:2] == (3, 3) and [s[0] for s in seen] == [1, 2, 3]


def bert(cls, seed, **config):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    return getattr(transformers, cls)(transformers.BertConfig(**SIZES, **config))


def save_with_tokenizer(model, folder):
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def test_writes_a_folder_that_transformers_loads(tmp_path):
    transformers = pytest.importorskip("transformers")
    base = bert("BertModel", 0)
    save_with_tokenizer(base, tmp_path / "base")
    for i, labels in enumerate((2, 5)):
        tuned = bert("BertForSequenceClassification", i + 1, num_labels=labels)
        tuned.bert.load_state_dict(
            {n: v + 0.01 * torch.randn_like(v) if v.is_floating_point() else v for n, v in base.state_dict().items()}
        )
        save_with_tokenizer(tuned, tmp_path / f"tuned{i}")
    tuned = [tmp_path / "tuned0", tmp_path / "tuned1"]
    out = dts.merge(tmp_path / "base", tuned, "ties", tmp_path / "merged", density=0.5)
    loaded = transformers.AutoModel.from_pretrained(out)
    expected = dts.merge(tmp_path / "base", tuned, "ties", density=0.5)
    for name, value in loaded.state_dict().items():
        assert name not in expected or torch.equal(value, expected[name]), name
    assert len(transformers.AutoTokenizer.from_pretrained(out)) == 7
    text = (out / "README.md").read_text()
    record = json.loads(text.split("```json")[1].split("```")[0])
    assert record["method"] == "ties" and record["options"] == {"density": 0.5, "scale": 1.0, "scope": "model"}
    assert record["models"] == [str(t) for t in tuned]
    with pytest.raises(FileExistsError, match="not empty"):
        dts.merge(tmp_path / "base", tuned, out=out)

    free = dts.merge(None, tuned, out=tmp_path / "free")
    model, info = transformers.AutoModel.from_pretrained(free, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert "classifier.weight" not in open_checkpoint(free).names
    assert "id2label" not in json.loads((free / "config.json").read_text())


def test_a_failed_merge_leaves_nothing(tmp_path):
    base, tuned = states()

    def fail(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dts.merge(base, tuned, out=tmp_path / "merged", progress=fail)
    assert not list(tmp_path.iterdir())


def test_tied_tensors_are_written_once(tmp_path):
    base, tuned = states(2)
    for model in (base, *tuned):
        model["body.b.weight"] = model["body.a.weight"]
    out = dts.merge(base, tuned, out=tmp_path / "merged")
    assert open_checkpoint(out / "model.safetensors").names.count("body.b.weight") == 0
    merged = dts.merge(base, tuned)
    assert merged["body.b.weight"] is merged["body.a.weight"]


def test_nothing_to_merge():
    with pytest.raises(ValueError, match="at least one"):
        dts.merge(states()[0], [])


@pytest.mark.parametrize(
    ("method", "options", "dtype", "says"),
    [
        ("fisher", {"power": -3000.0}, torch.float32, "elements of a.weight that are no numbers"),
        ("task_arithmetic", {"scale": 1e30}, torch.float16, "too large for float16.*'scale': 1e"),
    ],
)
def test_what_a_method_makes_no_numbers_of_is_not_written(tmp_path, method, options, dtype, says):
    draw = torch.Generator().manual_seed(0)
    base = {"a.weight": torch.randn(6, 6, generator=draw).to(dtype)}
    tuned = [{"a.weight": base["a.weight"] + torch.randn(6, 6, generator=draw).to(dtype)} for _ in range(2)]
    with pytest.raises(ValueError, match=says):
        dts.merge(base, tuned, method, out=tmp_path / "merged", **options)
    assert not list(tmp_path.iterdir())
