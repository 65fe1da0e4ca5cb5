"""Fine-tuning, on a tiny encoder and a task a glance solves."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from dts.demo import evaluate, finetune
from dts.demo.finetune import Recipe
from dts.demo.tasks import Task

WORDS = ["red", "blue", "sea", "sky", "blood", "rose", "the", "a"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=13,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def task():
    texts = [f"{article} {word}" for article in ("the", "a") for word in ("sea", "sky", "blood", "rose")] * 12
    labels = [0, 0, 1, 1] * 24
    splits = ["train"] * 80 + ["test"] * 16
    return Task("colours", "?", texts, labels, splits, ["blue", "red"], "here", "none")


RECIPE = Recipe(epochs=12, batch_size=8, learning_rate=1e-2, head_learning_rate=1e-2, max_length=8)


@pytest.fixture(scope="module")
def trained(base, task, tmp_path_factory):
    return finetune.finetune(task, RECIPE, base=base, cache=tmp_path_factory.mktemp("cache"))


def test_it_learns_and_loads_as_an_ordinary_checkpoint(trained, task):
    model, tokenizer = evaluate.load_finetuned(trained)
    texts, labels = task.split("test")
    logits = evaluate.logits(model, tokenizer, texts)
    assert (logits.argmax(-1) == torch.tensor(labels)).all()
    assert model.config.id2label == {0: "blue", 1: "red"}
    assert tokenizer.model_max_length == RECIPE.max_length
    assert not list(trained.parent.glob(".*"))


def test_embeddings_stay_and_everything_else_moves(trained, base):
    before, after = load_file(base / "model.safetensors"), load_file(trained / "model.safetensors")
    for name, tensor in before.items():
        moved = not torch.equal(tensor, after[f"bert.{name}"])
        # a key's bias adds the same to all of a query's scores: softmax ignores it, and Adam may leave it
        assert moved == (not name.startswith("embeddings")) or name.endswith("key.bias"), name


def test_embeddings_can_be_trained_and_unused_rows_stay_exactly(base, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, train_embeddings=True, epochs=1)
    after = load_file(finetune.finetune(task, recipe, base=base, cache=tmp_path) / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    unchanged = (load_file(base / "model.safetensors")[name] == after[f"bert.{name}"]).all(1)
    used = [5 + WORDS.index(word) for word in ("the", "a", "sea", "sky", "blood", "rose")]
    assert not unchanged[used].any()
    assert unchanged[[5 + WORDS.index(word) for word in ("red", "blue")]].all()


def test_decayed_embeddings_move_in_every_row(base, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, train_embeddings=True, decay_embeddings=True, epochs=1)
    after = load_file(finetune.finetune(task, recipe, base=base, cache=tmp_path) / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    before = load_file(base / "model.safetensors")[name]
    unused = [5 + WORDS.index(word) for word in ("red", "blue")]
    shares = after[f"bert.{name}"][unused] / before[unused]
    assert (shares < 1).all() and torch.allclose(shares, shares.mean(), atol=1e-6)


def test_the_second_call_finds_the_first_ones_result(trained, base, task):
    calls = []
    path = finetune.finetune(
        task, RECIPE, base=base, cache=trained.parent.parent, progress=lambda *state: calls.append(state)
    )
    assert path == trained and not calls


def test_progress_counts_every_step_and_the_seed_decides_the_result(base, task, trained, tmp_path):
    calls = []
    path = finetune.finetune(task, RECIPE, base=base, cache=tmp_path, progress=lambda *state: calls.append(state))
    assert [step for step, _, _ in calls] == list(range(1, 121)) and {steps for _, steps, _ in calls} == {120}
    first, second = (load_file(folder / "model.safetensors") for folder in (trained, path))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = finetune.finetune(task, dataclasses.replace(RECIPE, seed=1), base=base, cache=tmp_path)
    assert other != path
    assert not torch.equal(first["classifier.weight"], load_file(other / "model.safetensors")["classifier.weight"])


def test_the_path_depends_on_data_recipe_and_base(base, task, tmp_path):
    paths = {
        finetune.checkpoint_path(task, RECIPE, base=base),
        finetune.checkpoint_path(task, dataclasses.replace(RECIPE, epochs=5), base=base),
        finetune.checkpoint_path(task, dataclasses.replace(RECIPE, decay_embeddings=True), base=base),
        finetune.checkpoint_path(dataclasses.replace(task, labels=task.labels[::-1]), RECIPE, base=base),
    }
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert len(paths | {finetune.checkpoint_path(task, RECIPE, base=tmp_path)}) == 5


def test_an_interrupted_run_leaves_nothing(base, task, tmp_path):
    def stop(step, steps, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(task, RECIPE, base=base, cache=tmp_path, progress=stop)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_batches_hold_every_sample_once_and_similar_lengths():
    import random

    texts = ["x" * (i * 7919 % 100) for i in range(1000)]
    batches = list(finetune._batches(texts, 16, random.Random(0)))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    spread = [max(len(texts[i]) for i in batch) - min(len(texts[i]) for i in batch) for batch in batches]
    assert sum(spread) / len(spread) < 15  # of 100


def test_pairs_of_texts_are_two_segments(trained):
    _, tokenizer = evaluate.load_finetuned(trained)
    inputs = finetune.tokenize(tokenizer, [("the sea", "a sky"), ("blood", "a rose")])
    assert inputs["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_of_two_runs_that_write_one_folder_the_first_to_finish_stays(tmp_path):
    def slow(folder):
        (folder / "who").write_text("second")
        finetune.write_whole(tmp_path / "made", lambda other: (other / "who").write_text("first"))

    assert finetune.write_whole(tmp_path / "made", slow) == tmp_path / "made"
    assert (tmp_path / "made" / "who").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_failure_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        finetune.write_whole(tmp_path / "made", fail)
    assert not list(tmp_path.iterdir())
