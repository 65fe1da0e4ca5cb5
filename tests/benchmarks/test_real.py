"""The scores of real models, on look-alikes: tiny random models and tiny data in the hub's layouts."""

import json
import socket
import sys
import types

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.real import __main__ as command
from benchmarks.real import access, answers, grade, measure, sandbox
from benchmarks.real.questions import questions
from benchmarks.real.scores import DATA, PUBLISHED, SCORES
from benchmarks.real.table import table
from dts.demo.tasks import MissingData

GSM = [{"question": f"how many is {i} and one ?", "answer": f"{i} + 1 = #### {i + 1:,}"} for i in range(5)]
WORDS = ["<s>", "</s>", "<unk>", "how", "many", "is", "and", "one", "?", "answer", "0", "1", "2", "3", "4"]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """owner/name folders of WizardMath, its base with a token fewer, and two data sets."""
    place = tmp_path_factory.mktemp("mirror")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    sizes = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(WORDS)
    )
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=0, eos_token_id=1))
    score = SCORES["wizardmath-gsm8k"]
    base.save_pretrained(place / score.model.base)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    base.save_pretrained(place / score.model.finetuned)
    for name in (score.model.base, score.model.finetuned):
        tokenizer.save_pretrained(place / name)
    (place / "openai/gsm8k/main").mkdir(parents=True)
    (place / "openai/gsm8k/main/test.jsonl").write_text("\n".join(map(json.dumps, GSM)) + "\n")
    return place


def run(mirror, out, *more):
    return command.main(
        ["--scores", "wizardmath-gsm8k", "--mirror", str(mirror), "--out", str(out), "--sizes", "0.15", "--tokens", "4"]
        + ["--device", "cpu", "--dtype", "float32", "--batch", "2", *more]
    )


def test_a_score_from_the_command_to_the_table_and_again_after_an_interruption(mirror, tmp_path, capsys, monkeypatch):
    assert run(mirror, tmp_path) == 0
    said = capsys.readouterr().out
    last = said[said.index("wizardmath-gsm8k, 15 %: ") :]
    assert "arXiv 2504.13237" in last and "not run" in last and "63.96" in last and "this project, 15 %" in last
    figures = tmp_path / "scores/wizardmath-gsm8k.json"
    rows = json.loads(figures.read_text())
    assert [row["what"] for row in rows] == ["base", "fine-tune", "15 %"] and {row["rows"] for row in rows} == {5}
    adapter = tmp_path / "adapters/WizardMath-13B-auto-15"
    assert rows[2]["bytes"] == sum(file.stat().st_size for file in adapter.iterdir())

    asked, real = [], measure.greedy

    def counted(*arguments):
        inner = real(*arguments)
        return lambda prompts: asked.extend(prompts) or inner(prompts)

    monkeypatch.setattr(measure, "greedy", counted)
    assert run(mirror, tmp_path) == 0 and not asked
    figures.unlink()
    (file,) = (tmp_path / "answers").glob("*-fine-tune-*.jsonl")
    lines = [line for line in file.read_text().split("\n") if line]
    file.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # killed while it wrote the fourth
    assert run(mirror, tmp_path) == 0
    assert len(asked) == 2 and json.loads(figures.read_text()) == rows
    assert run(mirror, tmp_path, "--limit", "2") == 0 and len(asked) == 2  # of the same questions
    assert "only 2 rows" in capsys.readouterr().out


def test_what_is_missing_is_said_before_anything_is_downloaded(mirror, tmp_path, capsys, monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    def auth_check(self, name, repo_type):
        if name.startswith("meta-llama"):
            raise GatedRepoError.__new__(GatedRepoError)
        if name.startswith("tatsu"):
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        raise OSError("no route")

    monkeypatch.setattr(HfApi, "auth_check", auth_check)
    wanted = ["meta-llama/Llama-2-13b-hf", "vanillaOVO/WizardMath-13B-V1.0"]
    found = access.problems(wanted, ["tatsu-lab/alpaca_eval"], ["ifeval", "alpacaeval"], True)
    text = "\n".join(found)
    assert "gated: accept its licence at https://huggingface.co/meta-llama/Llama-2-13b-hf" in text
    assert "hf auth login" in text and "OSError" in text and "--mirror" in text
    assert "https://huggingface.co/datasets/tatsu-lab/alpaca_eval" in text
    for module, install in access.PACKAGES.values():
        if not access.importlib.util.find_spec(module):
            assert install in text
    assert command.main(["--scores", "chat7b-ifeval", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "Llama-2-7b-chat-hf is gated" in said and "Llama-2-7b-hf is gated" in said
    assert not any(tmp_path.iterdir())


def test_wrong_options(capsys):
    for words, says in ((["--scores", "x"], "no score x"), (["--pair", "a", "b"], "--pair needs a --benchmark")):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 2 and says in capsys.readouterr().err
    assert command.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(score.model.finetuned in said for score in SCORES.values()) and "36.98" in said


def test_the_table_has_the_published_means():
    lines = {line.split("  ")[0]: line.split()[-1] for line in table([]).splitlines()}
    means = {"base": "16.86", "fine-tune": "38.59", "BitDelta": "32.71", "Delta-CoMe": "35.17", "ImPart-Qt": "36.98"}
    for name, mean in means.items():  # as the paper prints them
        assert abs(float(lines[f"{name} (published)"]) - float(mean)) < 0.011
    assert all(len(values) == len(SCORES) for values in PUBLISHED.values())


def test_questions_come_from_all_parts_in_order(mirror, tmp_path):
    assert questions("gsm8k", mirror) == GSM
    assert questions("gsm8k", mirror, 2) == [GSM[0], GSM[2]]
    (tmp_path / "EleutherAI/hendrycks_math").mkdir(parents=True)
    with pytest.raises(MissingData, match="has none of algebra/test.jsonl"):
        questions("math", tmp_path)
    for data in DATA["math"]:
        (tmp_path / data.path / data.config).mkdir()
        (tmp_path / data.path / data.config / "test.jsonl").write_text(json.dumps({"problem": data.config}) + "\n")
    assert [row["problem"] for row in questions("math", tmp_path)] == [data.config for data in DATA["math"]]


@pytest.mark.parametrize(
    ("answer", "solution", "right"),
    [
        ("We add. The answer is: 1,234.", "#### 1234", True),
        ("So it is 12 in 3 steps. The answer is 12 apples, not 13", "#### 12", True),
        ("first 3, then 7", "#### 7", True),
        ("first 7, then 3", "#### 7", False),
        ("The answer is 5.\n### Instruction: what is 6?", "#### 5", True),
        ("The answer is 10/4", "#### 2.5", True),
        ("The answer is 1/0", "#### 1", False),
        ("The answer is -$3", "#### 3", False),
        ("none", "#### 1", False),
    ],
)
def test_numbers_of_answers(answer, solution, right):
    assert answers.same_number(answer, solution) is right


@pytest.mark.parametrize(
    ("answer", "solution", "right"),
    [
        (r"so \boxed{\dfrac{1}{2}}", r"it is $\boxed{\frac12}$.", True),
        (r"\boxed{x^{2}} hence", r"\boxed{x^{2}}", True),
        (r"\boxed{3} and then \boxed{4}", r"\boxed{3}", False),
        ("The answer is: 12\\text{ cm}.", r"\boxed{12\text{ cm}}", True),
        ("12", r"\boxed{12}", False),
        (r"\boxed{1,000}", r"\boxed{1000}", True),
        (r"\boxed{(1,2)}", r"\boxed{(1, 2)}", True),
        (r"\boxed{{1}", r"\boxed{1}", False),
    ],
)
def test_expressions_of_answers(answer, solution, right):
    assert answers.same_expression(answer, solution) is right


@pytest.fixture(scope="module")
def isolated():
    """What programs are run with: whether nothing takes the network away, as here nobody may."""
    try:
        return not sandbox.passes("", "")
    except sandbox.NotIsolated:
        return True


@pytest.mark.parametrize(
    ("program", "right"),
    [
        ("def add(a, b):\n    return a + b", True),
        ("def add(a, b):\n    return a - b", False),
        ("def add(a, b:", False),
        ("import os\nos._exit(0)", False),
        ("import sys\nsys.exit(0)", False),
    ],
)
def test_programs_pass_by_their_tests_alone(program, right, isolated):
    assert sandbox.passes(program, "assert add(1, 2) == 3", isolated=isolated) is right


def test_programs_have_little_time_memory_and_disk(isolated):
    assert not sandbox.passes("while True: pass", "", seconds=1, isolated=isolated)
    assert not sandbox.passes("import time\ntime.sleep(60)", "", seconds=1, isolated=isolated)
    assert not sandbox.passes("x = bytearray(2 << 30)", "", isolated=isolated)
    assert not sandbox.passes("open('x', 'wb').write(bytes(2 << 20))", "", isolated=isolated)
    assert sandbox.passes("import os", "assert 'SECRET' not in os.environ and not os.listdir('.')", isolated=isolated)


def test_programs_have_no_network(isolated):
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        assert sandbox.passes(reach, "", isolated=True)  # it is there
        if not isolated:
            assert not sandbox.passes(reach, "")
        else:
            with pytest.raises(sandbox.NotIsolated, match="--isolated"):
                sandbox.passes(reach, "")


def test_programs_are_graded_with_what_they_continue(isolated):
    row = {
        "prompt": "from math import sqrt\n\ndef root(x):\n    '''Root.'''\n",
        "test": "def check(f):\n    assert f(4) == 2",
        "entry_point": "root",
    }
    fenced = "Here:\n```python\ndef root(x):\n\treturn sqrt(x)\n```\nIt takes the root."
    for answer, right in (("    return sqrt(x)\n", 1.0), (fenced, 1.0), ("    return x\n", 0.0)):
        assert grade.humaneval(row, answer, isolated) == right
    mbpp = {"test_imports": ["import math"], "test_list": ["assert math.isclose(third(3), 1)"]}
    script = "def third(x):\n    return x / 3\nif __name__ == '__main__':\n    raise SystemExit(1)"
    assert grade.mbpp(mbpp, script, isolated) == 1.0


def test_ifeval_is_graded_by_the_harness(monkeypatch):
    fake = types.ModuleType("lm_eval.tasks.ifeval.utils")
    fake.process_results = lambda row, given: {"prompt_level_loose_acc": row["wanted"] == given[0]}
    for name in ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    rows = [{"wanted": "a"}, {"wanted": "b"}]
    assert grade.graded("ifeval", rows, ["a", "a"], True, None, "x") == 50.0


def test_without_its_judge_alpacaeval_leaves_the_answers_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert grade.graded("alpacaeval", [{"instruction": "q"}], ["a"], True, tmp_path, "x") is None
    (left,) = json.loads((tmp_path / "alpaca-x.json").read_text())
    assert left == {"instruction": "q", "output": "a", "generator": "x"}
    assert "OPENAI_API_KEY" in capsys.readouterr().out


def test_clip_runs_the_published_suites(monkeypatch):
    from benchmarks.quality.published import __main__ as published

    ran = []
    monkeypatch.setattr(published, "main", lambda arguments: ran.append(arguments) or 0)
    assert command.main(["clip", "--quick"]) == 0
    assert (
        ran == [["clip-b32-8", "--quick"], ["clip-l14-8", "--quick"]] and set(command.CLIP) <= published.suites().keys()
    )
