"""Merged bases, difference adapters, tasks never seen, and no task id: MiniLM-L6 on the text suite's fine-tunes.

    python -m benchmarks.quality.merging              all four parts on the cached fine-tunes of the text suite
    python -m benchmarks.quality.merging --quick      three tasks, few methods, small test sets
    python -m benchmarks.quality.merging --parts routing,unseen --seeds 0,1,2

bases      accuracy of each merging method alone, every task with its own head
adapters   DTS-T (on the pretrained base) and DTS-D (on merged bases) at equal bytes a task
unseen     the encoder of three held-out tasks made from the other tasks' adapters, under the held-out tasks' own heads;
           against the merged models and the best single task, and zero-shot by similarity to class names
routing    which task a text is of: energy router, nearest class name, probe on 50 samples a task; accuracy lost to it

Every measured row goes to a file of JSON lines and is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import dts
from benchmarks.quality.text import CACHE, SUITE, finetunes
from dts.checkpoint import open_checkpoint
from dts.demo import evaluate
from dts.demo.finetune import base_folder, tokenize
from dts.demo.tasks import Task
from dts.unseen import (
    EnergyRouter,
    NameRouter,
    ProbeRouter,
    mix,
    open_encoder,
    scrambled,
    task_embeddings,
    task_weights,
)

PARTS = ("bases", "adapters", "unseen", "routing")
METHODS: dict[str, dict] = {
    "average": {}, "task_arithmetic": {}, "ties": {}, "dare": {}, "dare_ties": {}, "breadcrumbs": {},
    "consensus_ta": {}, "fisher": {}, "regmean": {}, "tsv_merge": {}, "iso_c": {}, "knots": {}, "remainder": {},
}  # fmt: skip
QUICK_METHODS, QUICK_TASKS = ("average", "ties", "tsv_merge"), ["trec6", "sst2", "snips"]
DIFFERENCE_BASES = ("average", "ties", "tsv_merge", "remainder")
BUDGETS = (0.0025, 0.005, 0.01)
UNSEEN_RULES: dict[str, dict] = {
    "default": {}, "top 1": {"top_k": 1}, "top 3": {"top_k": 3}, "temperature 0.1": {"temperature": 0.1},
    "temperature 0.03": {"temperature": 0.03}, "floor 0.2": {"floor": 0.2}, "negative": {"negative": True},
}  # fmt: skip
PROBE_SAMPLES = 50
ROWS = CACHE / "merging.jsonl"


@dataclass
class Tested:
    """One fine-tune and a sample of its test set."""

    task: Task
    folder: Path
    samples: int
    model: torch.nn.Module = field(init=False)

    def __post_init__(self):
        self.model, self.tokenizer = evaluate.load_finetuned(self.folder)
        texts, labels = self.task.split("test")
        step = max(1, -(-len(texts) // self.samples))
        self.texts, self.labels = texts[::step], torch.tensor(labels[::step])
        self.own = {n: v.clone() for n, v in self.model.state_dict().items()}

    def accuracy(self, encoder: dict[str, Tensor] | None) -> float:
        return self.right(encoder).double().mean().item()

    def right(self, encoder: dict[str, Tensor] | None) -> Tensor:
        """Which answers are right (bool) with this encoder, named as the base, under the task's own head.

        None: the fine-tune's own encoder.
        """
        state = self.own | {f"bert.{n}": v for n, v in (encoder or {}).items() if f"bert.{n}" in self.own}
        logits = evaluate.logits(evaluate.with_tensors(self.model, state), self.tokenizer, self.texts)
        return logits.argmax(-1) == self.labels


class Rows:
    """Measured rows by what they depend on, kept in a file of JSON lines."""

    def __init__(self, path: Path):
        self.path = path
        self.known = {}
        if path.is_file():
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
            self.known = {json.dumps(line["key"]): line for line in lines}

    def row(self, key: list, measure) -> dict:
        """The known row of this key, or measure() -> dict, noted."""
        text = json.dumps(key)
        if text not in self.known:
            self.known[text] = {"key": key, **measure()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(self.known[text]) + "\n")
            print(json.dumps({k: v for k, v in self.known[text].items() if k != "key"}), file=sys.stderr, flush=True)
        return self.known[text]


def sources_digest() -> str:
    """Changes whenever the code that these figures depend on does."""
    root = Path(dts.__file__).parent
    files = sorted(f for part in ("codec", "merge", "unseen", "adapter") for f in (root / part).rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in [*files, Path(__file__)])).hexdigest()[:12]


class Study:
    """All parts for the fine-tunes of one seed."""

    def __init__(self, tested: list[Tested], seed: int, rows: Rows, methods: Iterable[str]):
        self.tested, self.seed, self.rows, self.methods = tested, seed, rows, list(methods)
        self.base = open_checkpoint(base_folder())
        self.code = sources_digest()
        self.identity = [t.folder.name for t in tested]
        self._adapters: dict = {}

    def measure(self, part: str, values: dict, function) -> dict:
        """One row; function() gives the figures, ``values`` say of what."""
        samples = [len(t.texts) for t in self.tested]
        key = [part, self.code, self.identity, samples, values]
        return self.rows.row(key, lambda: {"part": part, "seed": self.seed, **values, **function()})

    def merged(self, method: str, tested: list[Tested]) -> dict[str, Tensor]:
        return dts.merge(self.base, [t.folder for t in tested], method, seed=self.seed, **METHODS[method])

    def adapters(self, budget: float, tested: list[Tested]) -> dict[str, dts.Adapter]:
        """DTS-T adapters at a budget."""
        for t in tested:
            if (t.task.name, budget) not in self._adapters:
                self._adapters[t.task.name, budget] = dts.compress(
                    self.base, t.folder, budget=budget, name=t.task.name, class_names=t.task.class_names,
                    description=t.task.question,
                )  # fmt: skip
        return {t.task.name: self._adapters[t.task.name, budget] for t in tested}

    # ---- the four parts --------------------------------------------------------------------------------------------

    def bases(self) -> list[dict]:
        """Every merging method alone, and the two ends: the pretrained base and the fine-tunes themselves."""
        out = []
        for method in ["pretrained", *self.methods, "fine-tuned"]:

            def figures(method=method):
                encoder = {"pretrained": lambda: dict(state_of(self.base)), "fine-tuned": lambda: None}.get(
                    method, lambda: self.merged(method, self.tested)
                )()
                return {"accuracy": {t.task.name: t.accuracy(encoder) for t in self.tested}}

            out.append(self.measure("bases", {"method": method}, figures))
        return out

    def adapters_table(self, budgets: Iterable[float]) -> list[dict]:
        """DTS-T and DTS-D: accuracy of every task from its adapter, and the bytes of all adapters together."""
        out = []
        for budget in budgets:
            for on in ["pretrained", *(m for m in DIFFERENCE_BASES if m in self.methods)]:

                def figures(on=on, budget=budget):
                    accuracy, nbytes = {}, 0
                    with tempfile.TemporaryDirectory() as folder:  # a base in memory has no tokenizer to share
                        base = self.base
                        if on != "pretrained":
                            finetuned = [t.folder for t in self.tested]
                            dts.merge(self.base, finetuned, on, out=folder, seed=self.seed)
                            base = open_checkpoint(folder)
                        for t in self.tested:
                            adapter = dts.compress(base, t.folder, budget=budget, name=t.task.name,
                                                   kind="task" if on == "pretrained" else "difference")  # fmt: skip
                            accuracy[t.task.name] = t.accuracy(encoder_of(adapter, base))
                            nbytes += adapter.nbytes
                    return {"accuracy": accuracy, "nbytes": nbytes}

                out.append(self.measure("adapters", {"base": on, "budget": budget}, figures))
        return out

    def unseen(self, held_out: list[list[str]], budget: float) -> list[dict]:
        """Groups of held-out tasks, each from the adapters of all tasks outside its group."""
        out = []
        for group in held_out:
            seen = [t for t in self.tested if t.task.name not in group]
            targets = [t for t in self.tested if t.task.name in group]
            for t in targets:
                out += self._unseen_task(t, seen, budget)
        return out

    def _unseen_task(self, target: Tested, seen: list[Tested], budget: float) -> list[dict]:
        adapters = self.adapters(budget, seen)
        about = {"names": target.task.class_names, "description": target.task.question,
                 "numbers": [str(i) for i in range(len(target.task.class_names))]}  # fmt: skip
        encoders = {"pretrained": lambda: dict(state_of(self.base)), "fine-tuned": lambda: None}
        for method in [m for m in ("average", "ties") if m in self.methods]:
            encoders[method] = lambda method=method: self.merged(method, seen)
        for name, adapter in adapters.items():
            encoders[f"single {name}"] = lambda adapter=adapter: encoder_of(adapter, self.base)

        def mixture(rule: dict, text):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                weights = task_weights(text, adapters, self.encode(), **rule)
                if not len(weights):
                    return dict(state_of(self.base))
                return encoder_of(mix(adapters, weights, base=self.base), self.base)

        for rule, options in UNSEEN_RULES.items():
            encoders[f"mixture {rule}"] = lambda options=options: mixture(options, about["names"])
        for kind in ("description", "numbers"):
            encoders[f"mixture from {kind}"] = lambda kind=kind: mixture({}, about[kind])
        where = {"task": target.task.name, "budget": budget, "seen": [t.task.name for t in seen]}

        def figures(make):
            encoder = make()
            return {"accuracy": target.accuracy(encoder), "zero_shot": zero_shot(target, encoder)}

        return [self.measure("unseen", where | {"encoder": name}, lambda make=make: figures(make))
                for name, make in encoders.items()]  # fmt: skip

    def routing(self, budget: float, samples: int) -> list[dict]:
        """Routing accuracy, accuracy of the answers when each text goes where it was routed, and time."""
        adapters = self.adapters(budget, self.tested)
        names = [t.task.name for t in self.tested]
        texts, gold = [], []
        for t in self.tested:
            texts += t.texts[:samples]
            gold += [t.task.name] * len(t.texts[:samples])

        @cache
        def right() -> list[bool]:
            """Which rows their own task's adapter answers right."""
            rows = [t.right(encoder_of(adapters[t.task.name], self.base))[:samples] for t in self.tested]
            return torch.cat(rows).tolist()

        pools = {t.task.name: t.task.split("train")[0][:PROBE_SAMPLES] for t in self.tested}
        model, tokenizer = load_encoder()
        batch = dict(tokenize(tokenizer, [flat(text) for text in texts]))

        def energy(blocks: int, calibration: str) -> dict:
            """blocks: 0 for the inputs of the first block alone."""
            router = EnergyRouter.of(model, adapters, blocks=max(1, blocks))
            if not blocks:
                router = router.first_layers(model, batch)
            pooled = dict(tokenize(tokenizer, [flat(x) for pool in pools.values() for x in pool]))
            rows = {"none": None, "scrambled": scrambled(batch, tokenizer.vocab_size), "pool": pooled}[calibration]
            if rows is not None:
                router.calibrate(model, rows)
            choice, seconds = timed(lambda: router.route(model, batch))
            _, whole = timed(lambda: encode_all(model, batch))
            return {"share_of_a_pass": seconds / whole, **routed(choice.tasks, gold, names, right())}

        def nearest() -> dict:
            choice, seconds = timed(lambda: NameRouter(adapters, self.encode()).route([flat(x) for x in texts]))
            return {"seconds": seconds, **routed(choice.tasks, gold, names, right())}

        def probe() -> dict:
            features = {name: self.encode()([flat(x) for x in pool]) for name, pool in pools.items()}
            fitted = ProbeRouter.fit(features)
            choice, seconds = timed(lambda: fitted.route(self.encode()([flat(x) for x in texts])))
            return {"seconds": seconds, **routed(choice.tasks, gold, names, right())}

        out = [self.measure("routing", {"router": f"energy, {blocks} blocks, {how}", "budget": budget, "rows": samples},
                            lambda blocks=blocks, how=how: energy(blocks, how))
               for blocks in (0, 1) for how in ("none", "scrambled", "pool")]  # fmt: skip
        for name, function in (("nearest class name", nearest), (f"probe, {PROBE_SAMPLES} samples a task", probe)):
            out.append(self.measure("routing", {"router": name, "budget": budget, "rows": samples}, function))
        return out

    def encode(self):
        if not hasattr(self, "_encode"):
            self._encode = open_encoder("default")
        return self._encode


def flat(text) -> str:
    """A pair of texts as one."""
    return text if isinstance(text, str) else " ".join(text)


def state_of(checkpoint) -> Iterable[tuple[str, Tensor]]:
    return ((name, checkpoint.load(name)) for name in checkpoint.names)


def encoder_of(adapter: dts.Adapter, base) -> dict[str, Tensor]:
    """Base + adapter under the base's names."""
    tensors = adapter.apply(base, check=False)
    return {name.removeprefix("bert."): value for name, value in tensors if not name.startswith("classifier")}


def load_encoder():
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(base_folder()).eval(), AutoTokenizer.from_pretrained(
        base_folder(), model_max_length=64
    )


@torch.inference_mode()
def encode_all(model, batch) -> Tensor:
    return model(**batch).last_hidden_state


@torch.inference_mode()
def zero_shot(target: Tested, encoder: dict[str, Tensor] | None) -> float:
    """Accuracy of the class whose name's mean-pooled embedding is nearest to the text's."""
    state = target.own | {f"bert.{n}": v for n, v in (encoder or {}).items() if f"bert.{n}" in target.own}
    bert = evaluate.with_tensors(target.model, state).bert

    def embed(texts: list[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), 64):
            inputs = tokenize(target.tokenizer, texts[start : start + 64])
            states, mask = bert(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            parts.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1))
        return torch.cat(parts)

    names = task_embeddings({"": target.task.class_names}, embed)[""]
    best = (embed([flat(text) for text in target.texts]) @ names.T).argmax(1)
    return (best == target.labels).double().mean().item()


def routed(chosen: list[str | None], gold: list[str], names: list[str], right: list[bool]) -> dict:
    """Of each task: share of rows routed right, where the others went, accuracy with the true task and as routed.

    An answer of another task's head counts as wrong.
    """
    figures = {"routed": {}, "wrong": {}, "accuracy": {}, "accuracy_routed": {}}
    for name in names:
        found = [(c, ok) for c, g, ok in zip(chosen, gold, right) if g == name]
        tasks = [c for c, _ in found]
        figures["routed"][name] = tasks.count(name) / len(found)
        figures["wrong"][name] = {str(other): tasks.count(other) for other in set(tasks) - {name}}
        figures["accuracy"][name] = mean(ok for _, ok in found)
        figures["accuracy_routed"][name] = mean(ok and c == name for c, ok in found)
    return figures


def timed(function):
    """(result, seconds): the median of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def groups_of_three(names: list[str]) -> list[list[str]]:
    """Every task is held out once, three at a time (the last group holds what is left)."""
    if len(names) <= 3:
        return [[name] for name in names]
    return [names[i : i + 3] for i in range(0, len(names), 3)]


# ---- tables ---------------------------------------------------------------------------------------------------------


def mean(values) -> float:
    return statistics.fmean(values)


def table(title: str, rows: list[tuple[str, list[float]]], unit: str = "%") -> str:
    """A line an item: mean and, over seeds, standard deviation."""
    lines = [title]
    for name, values in rows:
        spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        lines.append(f"  {name:44} {100 * mean(values):6.2f}{spread} {unit}")
    return "\n".join(lines)


def by(rows: list[dict], name, value) -> list[tuple[str, list[float]]]:
    """One value a seed (the mean over the seed's rows) of every name."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault(name(row), {}).setdefault(row["seed"], []).append(value(row))
    return [(key, [mean(values) for values in seeds.values()]) for key, seeds in found.items()]


def tables(rows: list[dict]) -> str:
    part = {name: [row for row in rows if row["part"] == name] for name in PARTS}
    out = []
    if part["bases"]:
        out.append(table("Merged models alone, own heads: mean accuracy",
                         by(part["bases"], lambda r: r["method"], lambda r: mean(r["accuracy"].values()))))  # fmt: skip
    if part["adapters"]:
        out.append(table("Adapters at equal bytes: mean accuracy",
                         by(part["adapters"], adapter_label, lambda r: mean(r["accuracy"].values()))))  # fmt: skip
    if part["unseen"]:
        shown = with_best_single(part["unseen"])
        for title, figure in (("own heads: mean accuracy", "accuracy"), ("zero-shot by class names", "zero_shot")):
            out.append(table(f"Tasks never seen, {title}",
                             by(shown, lambda r: r["encoder"], lambda r, figure=figure: r[figure])))  # fmt: skip
    if part["routing"]:
        for title, figure in (("rows sent to the right task", "routed"), ("accuracy with the true task", "accuracy"),
                              ("accuracy where each row goes as routed", "accuracy_routed")):  # fmt: skip
            values = by(part["routing"], lambda r: r["router"], lambda r, figure=figure: mean(r[figure].values()))
            out.append(table(f"Routing: {title}", values if figure != "accuracy" else [("adapters", values[0][1])]))
        by_energy = [row for row in part["routing"] if "share_of_a_pass" in row]
        out.append(table("Routing: time, of one pass of the base",
                         by(by_energy, lambda r: r["router"], lambda r: r["share_of_a_pass"])))  # fmt: skip
    return "\n\n".join(out)


def adapter_label(row: dict) -> str:
    return f"{100 * row['budget']:.2f} %  DTS-" + ("T" if row["base"] == "pretrained" else f"D on {row['base']}")


def with_best_single(rows: list[dict]) -> list[dict]:
    """The rows, with those of single tasks replaced by the best of each seed and unseen task."""
    best: dict[tuple, dict] = {}
    for row in rows:
        if row["encoder"].startswith("single "):
            at = row["seed"], row["task"]
            best[at] = max(row, best.get(at, row), key=lambda r: r["accuracy"])
    kept = [row for row in rows if not row["encoder"].startswith("single ")]
    return kept + [row | {"encoder": "best single task (chosen on the test set)"} for row in best.values()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--tasks", default="", help="names, by commas")
    parser.add_argument("--methods", default="", help="merging methods, by commas")
    parser.add_argument("--seeds", default="0", help="of the fine-tunes, by commas")
    parser.add_argument("--budgets", default="", help="of the part adapters, shares of fp32, by commas")
    parser.add_argument("--budget", type=float, default=0.01, help="of adapters in the parts unseen and routing")
    parser.add_argument("--samples", type=int, default=0, help="test texts a task, at most")
    parser.add_argument("--out", type=Path, default=CACHE / "merging.json")
    options = parser.parse_args(arguments)
    split = lambda text: [part for part in text.split(",") if part]  # noqa: E731

    parts = split(options.parts)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    methods = split(options.methods) or (QUICK_METHODS if options.quick else METHODS)
    samples = options.samples or (100 if options.quick else 500)
    rows, known = [], Rows(ROWS)
    for seed in map(int, split(options.seeds)):
        trained = finetunes(split(options.tasks) or (QUICK_TASKS if options.quick else SUITE), [seed])
        study = Study([Tested(task, folder, samples) for task, _, folder in trained], seed, known, methods)
        if "bases" in parts:
            rows += study.bases()
        if "adapters" in parts:
            budgets = [float(part) for part in split(options.budgets)] or ((0.01,) if options.quick else BUDGETS)
            rows += study.adapters_table(budgets)
        if "unseen" in parts:
            rows += study.unseen(groups_of_three([t.task.name for t in study.tested]), options.budget)
        if "routing" in parts:
            rows += study.routing(options.budget, 100 if options.quick else 200)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([{k: v for k, v in row.items() if k != "key"} for row in rows], indent=1) + "\n")
    print(tables(rows))
    print(f"\nrows: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
