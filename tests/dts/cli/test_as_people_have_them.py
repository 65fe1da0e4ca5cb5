"""Checkpoints in the layouts that people have them in: each gives the very adapter that the plain layout gives."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dts.checkpoint import CheckpointError, NotRead, open_checkpoint
from tests.dts.cli.said import said

transformers = pytest.importorskip("transformers", minversion="5")
TEXT = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, image_size=16, patch_size=8
)


def moved(model, seed=1, only=""):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            change = 0.002 * torch.randn(value.shape, generator=generator)
            value.add_(change if only in name else 0)
    return model


def as_in_memory(model, folder):
    """Under the names of the model in memory, as who saves its state dict has them."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")


def llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=98,
    )
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config)


def mixtral():
    torch.manual_seed(0)
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**TEXT, num_local_experts=4))


def nomic():
    """Its files have q, k and v in one matrix, the model in memory has three."""
    torch.manual_seed(0)
    sizes = {name: size for name, size in TEXT.items() if name != "num_key_value_heads"}
    return transformers.NomicBertForSequenceClassification(transformers.NomicBertConfig(**sizes, pad_token_id=0))


MADE = {"llava": llava, "mixtral": mixtral}
if hasattr(transformers, "NomicBertConfig"):  # not in transformers 5.0
    MADE["nomic"] = nomic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of some kinds the base and a fine-tune, each as saved and, -memory, as in memory; of the vision-language model
    also its language model alone."""
    folder = tmp_path_factory.mktemp("people")
    for kind, made in MADE.items():
        model = made()
        model.save_pretrained(folder / kind)
        as_in_memory(model, folder / f"{kind}-memory")
        moved(model, only="language_model" if kind == "llava" else "")
        model.save_pretrained(folder / f"{kind}-tuned")
        as_in_memory(model, folder / f"{kind}-tuned-memory")
        if kind == "llava":
            text = transformers.LlamaForCausalLM(model.config.text_config)
            text.model.load_state_dict(model.model.language_model.state_dict())
            text.lm_head.load_state_dict(model.lm_head.state_dict())
            text.save_pretrained(folder / "text-tuned")
    return folder


def made(dts, out, *words):
    result = dts("compress", *words, "-o", out, "--rank-fraction", "0.3", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), load_file(f"{out}/dts_model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("base", ["", "-memory"])
@pytest.mark.parametrize("kind", MADE)
def test_names_and_experts_of_one_version_against_those_of_another(dts, folder, kind, base, tmp_path):
    bases, other = folder / (kind + base), "-memory" if not base else ""
    _, plain = made(dts, "plain", bases, folder / f"{kind}-tuned{base}")
    result, across = made(dts, "across", bases, folder / f"{kind}-tuned{other}")
    assert equal(plain, across)
    assert result["account"]["counts"]["base"].keys() <= {"changed", "equal"}
    verified = dts("verify", "across", bases, folder / f"{kind}-tuned{other}")
    assert verified.exit_code == 0, verified.stdout
    assert dts("apply", bases, "across", "-o", "full").exit_code == 0
    _, found = type(MADE[kind]()).from_pretrained("full", output_loading_info=True)
    assert not any(found.values()), found


def test_a_language_models_fine_tune_on_a_vision_language_base(dts, folder):
    base, text, words = folder / "llava", folder / "text-tuned", ("--only", "language_model")
    refused = dts("compress", base, text, "-o", "no")
    assert refused.exit_code == 2 and "--only language_model" in said(refused)
    for bases, whole in ((base, "llava-tuned"), (folder / "llava-memory", "llava-tuned-memory")):
        _, plain = made(dts, f"plain-{whole}", bases, folder / whole)
        result, part = made(dts, f"part-{whole}", bases, text, *words)
        assert {n.replace("text-tuned", ""): 0 for n in part} == {n.replace(whole, ""): 0 for n in plain}
        heads = [name for name in plain if "lm_head" in name]  # which no change was made to
        assert heads == [] and equal(plain, part)
    assert dts("verify", f"part-{whole}", bases, text, *words).exit_code == 0
    assert dts("diff", bases, text, *words).exit_code == 0
    assert dts("apply", bases, f"part-{whole}", "-o", "full").exit_code == 0
    full, found = transformers.LlavaForConditionalGeneration.from_pretrained("full", output_loading_info=True)
    assert not any(found.values()), found
    own = transformers.LlavaForConditionalGeneration.from_pretrained(base)
    assert torch.equal(
        own.model.vision_tower.embeddings.class_embedding, full.model.vision_tower.embeddings.class_embedding
    )
    wrong = dts("compress", base, text, "-o", "no", "--only", "decoder")
    assert wrong.exit_code == 2 and "language_model, multi_modal_projector, vision_tower" in said(wrong)
    wrong = dts("compress", base, text, "-o", "no", "--only", "vision_tower")
    assert wrong.exit_code == 2 and "and 18 more" in said(wrong)  # its head too


def test_a_language_models_fine_tune_is_evaluated_on_its_vision_language_base(dts, folder, tmp_path):
    """On texts alone; also the other way round, and both against a dense model's own answers."""
    rows = [{"input_ids": [3 + i % 40, 5, 7 + i, 9]} for i in range(12)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--data", tmp_path / "data.jsonl", "--only", "language_model", "--json")
    llama = transformers.LlavaForConditionalGeneration.from_pretrained(folder / "llava")
    text = transformers.LlamaForCausalLM(llama.config.text_config)
    text.model.load_state_dict(llama.model.language_model.state_dict())
    text.lm_head.load_state_dict(llama.lm_head.state_dict())
    text.save_pretrained("text")
    for base, tuned in ((folder / "llava", folder / "text-tuned"), ("text", folder / "llava-tuned")):
        made(dts, "adapter", base, tuned, "--only", "language_model")
        done = dts("eval", base, tuned, "adapter", *words)
        assert done.exit_code == 0, done.stderr
        first, ground, row = json.loads(done.stdout)["models"]
        assert first["perplexity"] > 1 and row["kl"] < ground["kl"] and "why" not in ground
        refused = dts("eval", base, tuned, "adapter", *words[:2], "--only", "vision_tower")
        assert refused.exit_code == 2 and "vision_tower" in said(refused)
        shutil.rmtree("adapter")
    refused = dts("eval", "text", folder / "llava-tuned", folder / "llava-tuned")
    assert refused.exit_code == 2 and "--only" in said(refused)


def masked(tokens, base=None):
    """Its output has a bias a token, all zeros in the base."""
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config)
    if tokens:
        moved(model).resize_token_embeddings(tokens)
    return model.eval()


@pytest.mark.parametrize("tokens, words", [(50, ["--vocabulary", "shared"]), (70, [])])
@torch.no_grad()
def test_a_bias_a_token_goes_with_the_vocabulary(dts, tokens, words, tmp_path):
    from dts.nn import DTSModel

    ids = torch.arange(20).view(2, 10)
    masked(None).save_pretrained("mlm-base")
    tuned = masked(tokens)
    tuned.save_pretrained("mlm-tuned")
    made(dts, "mlm", "mlm-base", "mlm-tuned", *words)
    assert dts("apply", "mlm-base", "mlm", "-o", "mlm-full").exit_code == 0
    full, found = transformers.BertForMaskedLM.from_pretrained("mlm-full", output_loading_info=True)
    assert not any(found.values()), found
    assert full.cls.predictions.bias.shape[0] == max(tokens, 60)
    torch.testing.assert_close(full.cls.predictions.bias[:tokens], tuned.cls.predictions.bias, rtol=0, atol=1e-3)
    packed = DTSModel.from_pretrained("mlm-base", {"mlm": "mlm"})
    torch.testing.assert_close(packed(input_ids=ids, tasks="mlm").logits, full.eval()(ids).logits, rtol=0, atol=1e-4)


def test_fewer_classes_are_no_smaller_vocabulary(dts, tmp_path):
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, num_labels=5
    )
    base = transformers.BertForSequenceClassification(config)
    base.save_pretrained("five")
    base.classifier.weight.data, base.classifier.bias.data = base.classifier.weight[:3], base.classifier.bias[:3]
    base.config.num_labels = 3
    moved(base).save_pretrained("three")
    refused = dts("compress", "five", "three", "-o", "no", "--vocabulary", "shared")
    assert refused.exit_code == 2 and "shape [3, 32]" in said(refused) and "--vocabulary" not in said(refused)


def test_a_fine_tune_that_ties_what_its_base_does_not_is_not_run_with_the_base_s_head(dts, folder):
    from dts.nn import DTSModel

    base = transformers.LlamaForCausalLM.from_pretrained(folder / "text-tuned")
    base.save_pretrained("untied")
    config = transformers.LlamaConfig(**TEXT, tie_word_embeddings=True)
    tied = transformers.LlamaForCausalLM(config)
    tied.model.load_state_dict(base.model.state_dict())
    moved(tied).save_pretrained("tied")
    made(dts, "adapter", "untied", "tied")
    with pytest.raises(ValueError, match="ties its output embedding .* and the base has a lm_head.weight of its own"):
        DTSModel.from_pretrained("untied", {"a": "adapter"})


def parts_changed(base, finetuned, part):
    import dts

    adapter = dts.compress(base, finetuned, only=part, rank_fraction=0.3)
    return {name.removeprefix("language_model.") if "lm_head" in name else name for name in adapter.entries}


def test_a_part_alone_changes_that_part_alone(folder, tmp_path):
    moved(llava()).save_pretrained(tmp_path / "all")
    for base, tuned in ((folder / "llava", tmp_path / "all"), (folder / "llava-memory", tmp_path / "all")):
        with pytest.warns(NotRead, match="25 tensors outside"):
            changed = parts_changed(base, tuned, "vision_tower")
        assert len(changed) > 20 and all("vision_tower." in name for name in changed)
        with pytest.warns(NotRead):
            changed = parts_changed(base, tuned, "language_model")
        assert "lm_head.weight" in changed and not any("vision" in name for name in changed)


def test_a_part_of_a_body_that_the_fine_tune_has_in_a_wrapper(tmp_path):
    """A BertModel as the base, a classifier with `bert.` before all of it as the fine-tune."""
    import dts

    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    base = transformers.BertModel(config)
    base.save_pretrained(tmp_path / "base")
    moved(transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")).save_pretrained(tmp_path / "t")
    for part, start in (("encoder", "encoder."), ("encoder.layer.1", "encoder.layer.1."), ("pooler", "pooler.")):
        with pytest.warns(NotRead, match="tensors outside"):
            adapter = dts.compress(tmp_path / "base", tmp_path / "t", only=part, rank_fraction=0.9)
        assert {name for name in base.state_dict() if name.startswith(start)} == set(adapter.entries)


def test_a_name_of_several_parts_is_refused_and_one_s_whole_name_is_that_one(folder, tmp_path):
    moved(llava()).save_pretrained(tmp_path / "all")
    with pytest.raises(CheckpointError, match=r"2 parts 'layers'.*language_model\.layers, .*encoder\.layers"):
        parts_changed(folder / "llava", tmp_path / "all", "layers")
    with pytest.warns(NotRead):
        changed = parts_changed(folder / "llava", tmp_path / "all", "vision_tower.encoder.layers")
    assert changed and all("vision_tower.encoder.layers." in name for name in changed)


def test_a_part_is_not_another_one_of_its_own_names(tmp_path):
    config = transformers.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    whole = transformers.T5ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path / "t5")
    encoder = transformers.T5EncoderModel(config)
    encoder.load_state_dict({name: whole.state_dict()[name] for name in encoder.state_dict()})
    moved(encoder).save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="no fine-tune of the part 'decoder'"):
        parts_changed(tmp_path / "t5", tmp_path / "encoder", "decoder")


def test_a_part_with_fewer_layers_is_refused_and_one_without_a_piece_says_so(folder, tmp_path):
    whole = transformers.LlamaForCausalLM.from_pretrained(folder / "text-tuned")
    config = transformers.LlamaConfig(**TEXT | {"num_hidden_layers": 1})
    fewer = transformers.LlamaForCausalLM(config)
    fewer.load_state_dict({name: whole.state_dict()[name] for name in fewer.state_dict()})
    fewer.save_pretrained(tmp_path / "fewer")
    with pytest.raises(CheckpointError, match="has fewer layers than the part.*layers.1.input_layernorm.weight"):
        parts_changed(folder / "llava", tmp_path / "fewer", "language_model")
    tensors = load_file(folder / "text-tuned" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "piece.safetensors")
    with pytest.warns(NotRead, match="has no .*norm.weight: of .*language_model' these stay the base's"):
        parts_changed(folder / "llava", tmp_path / "piece.safetensors", "language_model")


def test_a_part_with_a_head_of_its_own_unties_the_base_s_and_more_tokens_are_in_the_config(folder, tmp_path):
    from dts.checkpoint.fitted import fitted

    base = llava()
    base.config.tie_word_embeddings = base.config.text_config.tie_word_embeddings = True
    base.tie_weights()
    base.save_pretrained(tmp_path / "tied")
    assert not any("lm_head" in name for name in load_file(tmp_path / "tied" / "model.safetensors"))
    tied, text = open_checkpoint(tmp_path / "tied"), open_checkpoint(folder / "text-tuned")
    config = fitted(tied, text, "language_model").config
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
    alone = transformers.LlamaForCausalLM.from_pretrained(folder / "text-tuned")
    alone.save_pretrained(tmp_path / "text")
    base = moved(llava())
    base.resize_token_embeddings(105)
    base.save_pretrained(tmp_path / "grown")
    with pytest.warns(NotRead):
        config = fitted(
            open_checkpoint(tmp_path / "text"), open_checkpoint(tmp_path / "grown"), "language_model"
        ).config
    assert config["vocab_size"] == 105


def test_a_part_of_the_fine_tune_for_a_base_that_is_that_part(dts, folder):
    text = transformers.LlamaForCausalLM.from_pretrained(folder / "text-tuned")
    moved(text, seed=2).save_pretrained("base")
    _, plain = made(dts, "plain", "base", folder / "text-tuned")
    for whole in ("llava-tuned", "llava-tuned-memory"):
        with pytest.warns(NotRead, match="outside of .*language_model. are left out"):
            from dts.checkpoint.fitted import fitted

            fitted(open_checkpoint("base"), open_checkpoint(folder / whole), "language_model")
        _, part = made(dts, whole, "base", folder / whole, "--only", "language_model")
        assert equal(plain, part)


def test_a_smaller_vocabulary(dts, folder):
    base = transformers.LlamaForCausalLM.from_pretrained(folder / "text-tuned")
    base.save_pretrained("base")
    tuned = moved(transformers.LlamaForCausalLM.from_pretrained("base"))
    with torch.no_grad():
        for own, theirs in ((tuned.lm_head, base.lm_head), (tuned.model.embed_tokens, base.model.embed_tokens)):
            own.weight[90:] = theirs.weight[90:]
    tuned.save_pretrained("whole")
    tuned.resize_token_embeddings(90)
    tuned.save_pretrained("short")
    refused = dts("compress", "base", "short", "-o", "no")
    text = said(refused)
    assert refused.exit_code == 2 and text.count("shape [90, 32]") == 1 and "--vocabulary shared" in text
    _, plain = made(dts, "plain", "base", "whole")
    _, short = made(dts, "shared", "base", "short", "--vocabulary", "shared")
    assert equal(plain, short)
    assert dts("verify", "shared", "base", "short", "--vocabulary", "shared").exit_code == 0
    assert dts("apply", "base", "shared", "-o", "full").exit_code == 0
    full, found = transformers.LlamaForCausalLM.from_pretrained("full", output_loading_info=True)
    assert full.config.vocab_size == 99 and not any(found.values()), found
    assert "vocabulary must be 'shared'" in said(dts("compress", "base", "short", "-o", "no", "--vocabulary", "all"))
    other = transformers.LlamaForCausalLM(tuned.config)  # whose tokens are other ones
    other.model.layers.load_state_dict(tuned.model.layers.state_dict())
    other.save_pretrained("other")
    refused = dts("compress", "base", "other", "-o", "no", "--vocabulary", "shared")
    assert refused.exit_code == 2 and "first ones" not in said(refused)


@pytest.fixture
def states(models):
    """A file with two states, one further in, and what trainers add."""
    one, two = (load_file(models / name / "model.safetensors") for name in ("one", "two"))
    optimizer = {"state": {0: one}, "param_groups": []}
    torch.save({"model": one, "ema": two, "further": {"in": two}, "optimizer": optimizer}, "run.pt")
    torch.save({"model": one, "further": {"in": two}, "optimizer": optimizer}, "one.pt")
    return models


def test_a_file_with_several_states(dts, states):
    with pytest.warns(NotRead, match="one.pt: its state model was read, and further.in was not"):
        open_checkpoint("one.pt")
    refused = dts("compress", states / "base", "run.pt", "-o", "no")
    text = said(refused)
    assert refused.exit_code == 2
    for word in ("run.pt has several states: ema, further.in, model.", "run.pt#model", "--state model"):
        assert word in text, text
    for state, name in (("model", "one"), ("further.in", "two")):
        _, plain = made(dts, f"plain-{name}", states / "base", states / name)
        for words in (("run.pt", "--state", state), (f"run.pt#{state}",)):
            result, told = made(dts, f"{name}-{len(words)}", states / "base", *words)
            assert equal(plain, told) and result["name"] == "run.pt"
    assert dts("diff", states / "base", "run.pt", "--state", "model").exit_code == 0
    assert dts("verify", "plain-one", states / "base", "run.pt", "--state", "model").exit_code in (0, 1)
    assert "it has ema, further.in, model" in said(dts("diff", states / "base", "run.pt", "--state", "x"))
    assert "is none: give the file" in said(dts("diff", states / "base", states / "one", "--state", "x"))
    assert "of the fine-tune: give it" in said(dts("verify", "plain-one", states / "base", "--state", "x"))


def test_the_folder_of_a_trainers_run(dts, models, tmp_path):
    for step, source in (("50", "two"), ("500", "one"), ("1000", "two")):
        folder = tmp_path / "runs" / "mood" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for file in (models / source).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder.parent / "checkpoint-2000").mkdir()  # being written
    _, one = made(dts, "one", models / "base", models / "one")
    _, two = made(dts, "two", models / "base", models / "two")
    run = folder.parent
    result = dts("compress", models / "base", run, "-o", "last", "--rank-fraction", "0.3", "--json")
    text = " ".join(result.stderr.split())
    assert "checkpoint-1000 inside it was read, the last of 3 (checkpoint-50, checkpoint-500 were not)" in text
    assert json.loads(result.stdout)["name"] == "mood" and equal(two, load_file("last/dts_model.safetensors"))
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "/elsewhere/mood/checkpoint-500"}))
    with pytest.warns(NotRead, match="checkpoint-500 inside it was read, the best of 3 by checkpoint-1000"):
        assert open_checkpoint(run).folder == run / "checkpoint-500"
    _, best = made(dts, "best", models / "base", run)
    assert equal(one, best)
    _, last = made(dts, "given", models / "base", folder)
    assert equal(two, last)
    save_file(load_file(models / "one/model.safetensors"), run / "model.safetensors")
    with pytest.warns(NotRead, match="its own weights were read, and checkpoint-1000, checkpoint-50, checkpoint-500"):
        open_checkpoint(run)


def test_a_sub_model_of_a_diffusers_pipeline(dts, models, tmp_path):
    for pipeline, source in (("base", "base"), ("tuned", "one")):
        unet = tmp_path / pipeline / "unet"
        unet.mkdir(parents=True)
        tensors = load_file(models / source / "model.safetensors")
        names = sorted(tensors)
        shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        save_file({names[0]: tensors[names[0]]}, unet / shards[0])
        save_file({name: tensors[name] for name in names[1:]}, unet / shards[1])
        where = {name: shards[name != names[0]] for name in names}
        (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        (unet / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
        (tmp_path / pipeline / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet"]}))
    refused = dts("compress", "base", "tuned", "-o", "no")
    assert refused.exit_code == 2 and "base/unet, and the same one of the other" in said(refused)
    _, plain = made(dts, "plain", models / "base", models / "one")
    _, unet = made(dts, "adapter", "base/unet", "tuned/unet")
    assert equal(plain, unet)
    assert dts("apply", "base/unet", "adapter", "-o", "full").exit_code == 0
    assert (tmp_path / "full/diffusion_pytorch_model.safetensors").is_file()
    assert json.loads((tmp_path / "full/config.json").read_text())["_class_name"] == "UNet2DConditionModel"
    assert open_checkpoint("full").names and dts("merge", "full", "tuned/unet", "--base", "base/unet", "-o", "m")
    assert (tmp_path / "m/diffusion_pytorch_model.safetensors").is_file()


def test_one_cause_is_one_line(dts, models):
    base = load_file(models / "base/model.safetensors")
    save_file({f"layer.{i}.weight": torch.ones(48, 64) for i in range(2)}, "narrow.safetensors")
    many = {f"layer.{i}.weight": torch.ones(8, 8 + i) for i in range(40)}
    save_file(many, "many.safetensors")
    save_file({name: value.new_ones(8, 88 + i) for i, (name, value) in enumerate(many.items())}, "wide.safetensors")
    refused = dts("diff", models / "base", "narrow.safetensors")
    lines = [re.sub(r"[│\s]+", " ", line) for line in refused.stderr.splitlines() if "shape" in line]
    assert len(lines) == 1 and "layer.0.weight, layer.1.weight: shape [48, 64]" in lines[0], lines
    text = said(dts("diff", "many.safetensors", "wide.safetensors"))
    assert "40 mismatches" in text and "and so 37 more" in text and len(text) < 700
    assert base
