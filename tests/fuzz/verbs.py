"""Verbs with options drawn at random: each ends as the command line promises, whatever it is given.

    python -m tests.fuzz.verbs [--count 2000] [--seed 0] [--verb NAME]

A call is drawn from (seed, number) alone, its options from the verb's own list: most of them as a user means them, some
wrong in kind, in range, in place, contradictory or given twice.  Asserted of every call: exit code 0, 1 or 2; no
traceback and no unexpected error; words on stderr where it is 2; with --json one document of JSON on stdout; inputs as
they were; an output that is whole, or none; and nothing left beside it.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import typer.main
from safetensors.torch import save_file
from typer.testing import CliRunner

import dts
from dts.checkpoint import open_checkpoint
from dts.cli.app import app
from dts.exports.peft_folder import read_peft

SECONDS = 120  # that a call may take before it counts as one that hangs
LEFT_OUT = ("serve", "demo", "doctor", "bench")  # they wait, or work for minutes, or take nothing
HOME = "home"
BASE, TUNED, ADAPTERS = "base", ["mood", "topic"], ["mood-a", "topic-a", "sketch-a", "exact-a"]

# -- the world that verbs are called in ---------------------------------------------------------------------------


def world(folder: Path) -> None:
    """A base, fine-tunes, adapters of each method, files for the imports and examples, and places that are none."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    sizes = dict(vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    sizes |= dict(max_position_embeddings=16)
    base = BertModel(BertConfig(**sizes))
    base.save_pretrained(folder / BASE)
    for name, labels in zip(TUNED, (["sad", "glad"], ["sport", "science", "law"])):
        model = BertForSequenceClassification(BertConfig(**sizes, id2label=dict(enumerate(labels))))
        model.bert.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in model.bert.encoder.parameters():
                parameter += 0.002 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        rows = [{"input_ids": [1, 2 + i, 3], "label": labels[i % len(labels)]} for i in range(12)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        dts.compress(folder / BASE, folder / name, folder / f"{name}-a", method="residual", rank_fraction=0.3)
    dts.compress(folder / BASE, folder / "mood", folder / "sketch-a", method="sketch", budget=0.6, name="sketch")
    dts.compress(folder / BASE, folder / "mood", folder / "exact-a", method="exact", name="exact")
    dts.exports.export_lora(folder / "mood-a", folder / BASE, folder / "lora")
    weight = base.state_dict()["encoder.layer.0.output.dense.weight"]  # [24, 32]
    name = "encoder.layer.0.output.dense"
    save_file(
        {
            f"{name}.weight.indices": torch.arange(5, dtype=torch.int32),
            f"{name}.weight.values": weight.flatten()[:5] + 1,
        },
        folder / "patch.safetensors",
    )
    mask = torch.randint(-(2**31), 2**31 - 1, (1, 24), dtype=torch.int64).int()
    torch.save({f"{name}.mask": mask, f"{name}.coeff": torch.tensor(0.01)}, folder / "diff.pt")
    (folder / "recipe.yaml").write_text(f"base: {BASE}\nout: many\nrank_fraction: 0.3\nfinetunes: [mood, topic]\n")
    (folder / "classes.txt").write_text("yes\nno\n")
    (folder / "junk").write_bytes(b"\x00\xff junk" * 9)
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "thesis").write_text("mine")
    (folder / HOME).mkdir()
    os.symlink("loop", folder / "loop")
    os.symlink("mood", folder / "link")


def content(folder: Path) -> dict[str, str]:
    """Path -> what lies there, of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith(f"{HOME}/."):  # caches of libraries
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# -- what is drawn ------------------------------------------------------------------------------------------------

PLACES = [BASE, *TUNED, *ADAPTERS, "lora", "patch.safetensors", "diff.pt", "mood.jsonl", "recipe.yaml", "junk", "empty"]
PLACES += ["full", "loop", "loop/x", "link", "nowhere", "junk/x", ".", "..", "/dev/null", "/dev/full", "~nobody-here/x"]
PLACES += ["n" * 300, "café ☃", "base/model.safetensors", "base/config.json", "mood-a/dts_config.json"]
PLACES += ["mood@v2", "mood#model", "org/name/", "https://example.org/x", "a\nb", "-", "~"]
WORDS = [
    "",
    " ",
    "x",
    "none",
    "auto",
    "a,b",
    "a, a",
    ",",
    "@classes.txt",
    "@nowhere",
    "@",
    "é☃",
    "a=b",
    "a\x1b[31mb",
    "*",
]
WORDS += ["a\x1b[31mb", "None", "true", "[1]", "{}", "y" * 5000, "cuda", "cuda:99", "meta", "../x", "a/b"]
NUMBERS = ["0", "-1", "1", "2", "7", "3.5", "nan", "inf", "-inf", "1e999", "1e-30", "99999999999999999999", "0x10"]
NUMBERS += ["\N{ARABIC-INDIC DIGIT ONE}", "1_000", "+1", "1e3", "", "one"]
SIZES = ["1%", "40%", "100%", "101%", "0%", "-1%", "nan%", "inf%", "%", "20KB", "1B", "0KB", "1e6KB", "1 KB", "1KiB"]
SIZES += ["-5MB", "9999999999TB", "nanMB", "1%KB", "0.5", "50", "1e-9%"]

GOOD: dict[str, list[str]] = {  # by the option's long word, or the argument's name
    "base": [BASE],
    "--base": [BASE],
    "model": [BASE],
    "finetuned": TUNED,
    "adapter": ADAPTERS,
    "adapters": ADAPTERS,
    "--adapters": ["."],
    "folder": ["."],
    "import lora folder": ["lora"],
    "file": ["diff.pt"],
    "source": ["patch.safetensors"],
    "--out": ["out", "new/out", "empty"],
    "out": ["out", "new/out", "empty"],
    "--budget": ["30%", "60%", "9KB"],
    "--rank-fraction": ["0.3", "50%"],
    "--target-error": ["20%"],
    "--method": ["auto", "residual", "sketch", "paper", "exact"],
    "merge --method": ["average", "ties", "dare"],
    "--merge": ["average", "ties"],
    "--option": ["density=0.5", "scale=1"],
    "--config": ["recipe.yaml"],
    "--class-names": ["a,b", "@classes.txt"],
    "--classes": ["a,b", "@classes.txt"],
    "--name": ["n"],
    "--description": ["what it does"],
    "--data": ["mood.jsonl", "topic.jsonl"],
    "--examples": ["mood.jsonl"],
    "--route-with": ["mood.jsonl"],
    "--weight": ["mood=0.5", "topic=1"],
    "--head": ["none", "nearest"],
    "--tokenizer": ["mood"],
    "--text": ["input_ids"],
    "--label": ["label"],
    "--layer": ["encoder.layer.0.attention.self.query.weight"],
    "--dtype": ["float32", "bfloat16", "float16"],
    "--device": ["cpu"],
    "--memory": ["2GB"],
    "--prefix": ["10%"],
    "--pin": ["mood-a"],
    "--values": ["new", "differences"],
    "--routing": ["rows", "call"],
    "--factors": ["initialisers", "inputs"],
    "--only": ["encoder"],
    "--vocabulary": ["shared"],
    "--plot": ["plot.png"],
    "--encoder": ["default"],
    "--jobs": ["1"],
    "--task-cpus": ["1"],
}
RARE = ("--config", "--merge", "--state", "--ray", "--ray-address", "--revision", "--finetuned-revision", "--methods")
SLOW = {"--jobs": ["1", "0", "-1", "x", ""], "--ray-address": ["", " "]}  # what would start others for real


@dataclass
class Call:
    words: list[str]
    verb: str

    @property
    def json(self) -> bool:
        return "--json" in self.words


def commands() -> dict[str, Any]:
    """Every verb by its words."""
    found: dict[str, Any] = {}

    def walk(group, words: tuple[str, ...]) -> None:
        for name, command in group.commands.items():
            if name in LEFT_OUT:
                continue
            if hasattr(command, "commands"):
                walk(command, (*words, name))
            else:
                found[" ".join((*words, name))] = command

    walk(typer.main.get_command(app), ())
    return found


def value_of(verb: str, word: str, parameter, draw: random.Random) -> str:
    """What a user means, mostly."""
    if word in SLOW:
        return draw.choice(SLOW[word])
    good = GOOD.get(f"{verb} {word}") or GOOD.get(word)
    if good and draw.random() < 0.8:
        return draw.choice(good)
    kind = parameter.type_descriptor.annotation
    if kind in (int, float) and draw.random() < 0.8:
        return draw.choice(NUMBERS[2:5] if draw.random() < 0.6 else NUMBERS)
    if isinstance(kind, type) and issubclass(kind, Enum) and draw.random() < 0.7:
        return draw.choice(list(kind)).value
    return draw.choice(draw.choice([PLACES, WORDS, NUMBERS, SIZES]))


def drawn(verb: str, command: Any, draw: random.Random) -> Call:
    """One call of a verb."""
    options, arguments = [], []
    share = draw.choice([0.03, 0.1, 0.25])
    for parameter in command.params:
        if parameter.name in ("help",):
            continue
        if parameter.param_type_name == "argument":
            if not parameter.required and draw.random() < 0.25 or draw.random() < 0.02:
                continue
            count = draw.choice([1, 1, 2, 3]) if parameter.nargs == -1 else 1
            arguments += [value_of(verb, parameter.name, parameter, draw) for _ in range(count)]
            continue
        word = next((word for word in parameter.opts if word.startswith("--")), parameter.opts[0])
        wanted = parameter.required or word in ("--out", "--base", "--weight", "--examples") or word == "--budget"
        chance = 0.9 if wanted else 0.3 * share if word in RARE else share
        if word == "--json":
            chance = 0.5
        for _ in range(2 if draw.random() < 0.03 else 1):
            if draw.random() < chance:
                given = draw.choice(parameter.opts)
                if parameter.is_bool_flag:
                    options.append([given])
                elif given.startswith("--") and draw.random() < 0.2:
                    options.append([f"{given}={value_of(verb, word, parameter, draw)}"])
                else:
                    options.append([given, value_of(verb, word, parameter, draw)])
    draw.shuffle(options)
    parts = [[argument] for argument in arguments]
    words = [word for part in (parts + options if draw.random() < 0.7 else options + parts) for word in part]
    if draw.random() < 0.02:
        words.append(draw.choice(["--nonsense", "--", "-x", "--debug", "--help"]))
    return Call([*verb.split(), *words], verb)


# -- what becomes of one ------------------------------------------------------------------------------------------


class Hangs(BaseException):
    pass


class Fuzzer:
    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="dts-verbs-")
        root = Path(self._folder.name).resolve()
        self.pristine, self.place = root / "pristine", root / "top" / "world"
        self.pristine.mkdir()
        world(self.pristine)
        self.fresh()
        self.before = content(self.place)
        self.commands = commands()

    def close(self) -> None:
        self._folder.cleanup()

    def fresh(self) -> None:
        shutil.rmtree(self.place.parent, ignore_errors=True)
        self.place.parent.mkdir()
        shutil.copytree(self.pristine, self.place, symlinks=True)

    def call(self, seed: int, number: int, verb: str | None = None) -> Call:
        draw = random.Random(f"{seed} {number}")
        chosen = verb or draw.choice(list(self.commands))
        return drawn(chosen, self.commands[chosen], draw)

    def one(self, call: Call) -> tuple[str, list[str]]:
        """(how it ended, what is wrong with that)."""

        def late(*_):
            raise Hangs

        before = signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        changed = os.environ | {"HOME": str(self.place / HOME), "COLUMNS": "120"}
        kept = dict(os.environ)
        try:
            os.environ.update(changed)
            # a word that is no place is not asked for over a network
            offline = mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            with contextlib.chdir(self.place), offline, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                done = CliRunner().invoke(app, call.words, prog_name="dts")
        except Hangs:
            return "hangs", [f"no end after {SECONDS} s"]
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            os.environ.clear()
            os.environ.update(kept)
        wrong = self.said(call, done)
        after = content(self.place) if self.place.is_dir() else {}
        wrong += self.left(call, done, after)
        outside = [path.name for path in self.place.parent.iterdir() if path != self.place]
        if outside and not (done.exit_code == 0 and any(".." in word for word in call.words)):
            wrong.append(f"left outside: {outside}")
        if after != self.before or outside:
            self.fresh()
        return str(done.exit_code), wrong

    def said(self, call: Call, done) -> list[str]:
        wrong = []
        if done.exit_code not in (0, 1, 2):
            wrong.append(f"exit code {done.exit_code}")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            wrong.append(f"raised {done.exception!r}")
        if "Unexpected" in done.stderr or "Traceback" in done.stderr and "--debug" not in call.words:
            wrong.append("unexpected error")
        if "[Errno" in done.stderr and "--debug" not in call.words:
            wrong.append("the system's own words")
        if done.exit_code == 2 and not done.stderr.strip():
            wrong.append("no word on stderr")
        if done.exit_code == 0 and not done.stdout.strip():
            wrong.append("no word on stdout")
        if call.json and "--help" not in call.words and "-h" not in call.words and "--" not in call.words:
            try:
                json.loads(done.stdout, parse_constant=lambda word: 1 / 0)
            except (ValueError, ZeroDivisionError) as error:
                wrong.append(f"no JSON: {error}")
        return wrong

    def left(self, call: Call, done, after: dict[str, str]) -> list[str]:
        """What is wrong with the files that the call left."""
        gone = [name for name in self.before if after.get(name) != self.before[name]]
        new = [name for name in after if name not in self.before]
        wrong = []
        ours = [name for name in new if name.rpartition("/")[2].startswith(".")]
        resumable = call.verb == "compress"
        if stray := [name for name in ours if not (resumable and (".partial" in name or ".dts-compress" in name))]:
            wrong.append(f"left beside it: {stray[:5]}")
        if done.exit_code == 2 and not resumable and (gone or new):
            made = [name for name in new if after[name] != "folder"]
            wrong += [f"altered: {gone[:5]}"] * bool(gone) + [f"left after an error: {made[:5]}"] * bool(made)
        if "--dry-run" in call.words and (gone or new):
            wrong.append(f"a dry run wrote {(gone + new)[:5]}")
        allowed = "--overwrite" in call.words or call.verb == "route" or call.verb == "compress"
        if gone and not allowed:
            wrong.append(f"altered without being asked: {gone[:5]}")
        for config in {
            name for name in after if name.endswith("dts_config.json") and after[name] != self.before.get(name)
        }:
            if "/." not in f"/{config}":
                wrong += self.whole(self.place / config)
        if done.exit_code == 0:
            wrong += self.made(new)
        return wrong

    def whole(self, config: Path) -> list[str]:
        try:
            dts.Adapter.load(config.parent)
        except Exception as error:
            return [f"{config.parent.name} is not whole: {error}"]
        return []

    def made(self, new: list[str]) -> list[str]:
        """What is wrong with models, LoRAs and programs that were written."""
        wrong = []
        for name in new:
            path = self.place / name
            try:
                if path.name == "model.safetensors":
                    found = open_checkpoint(path.parent)
                    for tensor in found.names:
                        found.load(tensor)
                elif path.name == "adapter_config.json":
                    read_peft(path.parent)
                elif path.suffix == ".pt2" and not zipfile.is_zipfile(path):
                    wrong.append(f"{name} is no archive")
            except Exception as error:
                wrong.append(f"{name} is not whole: {error}")
        return wrong


def run(fuzzer: Fuzzer, seed: int, numbers, verb: str | None = None) -> tuple[collections.Counter, list[str]]:
    """(how many ended how, a line a failure)."""
    counts: collections.Counter = collections.Counter()
    failures = []
    for number in numbers:
        call = fuzzer.call(seed, number, verb)
        how, wrong = fuzzer.one(call)
        counts[how] += 1
        if wrong:
            failures.append(f"{number}: dts {' '.join(map(repr, call.words))}: {'; '.join(wrong)}")
            print(failures[-1], flush=True)
    return counts, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--verb")
    options = parser.parse_args()
    fuzzer = Fuzzer()
    try:
        counts, failures = run(fuzzer, options.seed, range(options.first, options.first + options.count), options.verb)
    finally:
        fuzzer.close()
    print(dict(counts), f"{len(failures)} failures")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
