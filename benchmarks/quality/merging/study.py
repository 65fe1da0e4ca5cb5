"""What all parts share: the fine-tunes of one seed, their adapters, and rows that are measured once."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from torch import Tensor

import dts
from benchmarks.quality.merging.tested import Tested
from dts.checkpoint import open_checkpoint
from dts.demo.finetune import base_folder
from dts.unseen import open_encoder

METHODS: dict[str, dict] = {
    "average": {},
    "task_arithmetic": {},
    "ties": {},
    "dare": {},
    "dare_ties": {},
    "breadcrumbs": {},
    "consensus_ta": {},
    "fisher": {},
    "regmean": {},
    "tsv_merge": {},
    "iso_c": {},
    "knots": {},
    "remainder": {},
}
CODEC = "residual"  # of all adapters: what a router knows a task by is its components, of which a sketch has fewer
MEASURING = ("tested", "study", "bases", "unseen", "routing")  # the modules here that figures depend on


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
    files += [Path(__file__).with_name(f"{name}.py") for name in MEASURING]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


class Study:
    """The fine-tunes of one seed, the base, and what is made of them."""

    def __init__(self, tested: list[Tested], seed: int, rows: Rows, methods: Iterable[str]):
        self.tested, self.seed, self.rows, self.methods = tested, seed, rows, list(methods)
        self.base = open_checkpoint(base_folder())
        self.code = sources_digest()
        self._adapters: dict = {}

    def measure(self, part: str, values: dict, function, tested: list[Tested] | None = None) -> dict:
        """One row; function() gives the figures, ``values`` say of what, ``tested`` on which fine-tunes (all)."""
        used = self.tested if tested is None else tested
        key = [part, self.code, [t.folder.name for t in used], [len(t.texts) for t in used], values]
        return self.rows.row(key, lambda: {"part": part, "seed": self.seed, **values, **function()})

    def merged(self, method: str, tested: list[Tested]) -> dict[str, Tensor]:
        return dts.merge(self.base, [t.folder for t in tested], method, seed=self.seed, **METHODS[method])

    def adapters(self, budget: float, tested: list[Tested]) -> dict[str, dts.Adapter]:
        """DTS-T adapters at a budget."""
        for t in tested:
            if (t.task.name, budget) not in self._adapters:
                self._adapters[t.task.name, budget] = dts.compress(
                    self.base,
                    t.folder,
                    method=CODEC,
                    budget=budget,
                    name=t.task.name,
                    class_names=t.task.class_names,
                    description=t.task.question,
                )
        return {t.task.name: self._adapters[t.task.name, budget] for t in tested}

    @cached_property
    def encode(self):
        """Texts -> embeddings, by the offline default."""
        return open_encoder("default")
