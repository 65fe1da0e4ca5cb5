"""Quantised bases: what quantisation costs an adapter's answers, and what an adapter made for such a base repairs.

    python -m benchmarks.quality.quantised                         MiniLM-L6, fine-tunes of `text_all`
    python -m benchmarks.quality.quantised --tasks trec6 --kinds "torchao int4" --sizes 0.01
    python -m benchmarks.quality.quantised --table                 the table of the rows that there are

Needs torchao and bitsandbytes (pip install '.[quantised]').  KL in nats to the fp32 fine-tune, on up to 300 test texts:

    full     the adapter made for the full-precision base, over that
    over     the same adapter over the quantised base
    made     an adapter made for the quantised base (`dts compress --base-is quantised`), over that
    none     no adapter: the fine-tune itself, quantised in the same way

at each size, a share of the base's bytes in fp32.  Rows are kept, so that the same command goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dts
from benchmarks.quality import text
from benchmarks.quality.command import CACHE, hush, list_of, make_place
from dts import metrics
from dts.demo import evaluate
from dts.demo.finetune import base_folder
from dts.demo.tasks import MissingData
from dts.nn.base import QuantisedBase

RESULTS = Path(__file__).resolve().parents[1] / "results" / "quantised" / "minilm.jsonl"
SAMPLES = 300
ARMS = ("full", "over", "made")


def _torchao(bits: int) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    four = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    return TorchAoConfig(Int8WeightOnlyConfig() if bits == 8 else four, modules_to_not_convert=["classifier"])


def _bitsandbytes() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["classifier"])


KINDS: dict[str, Callable[[], Any]] = {
    "torchao int8": lambda: _torchao(8),
    "torchao int4": lambda: _torchao(4),
    "bitsandbytes nf4": _bitsandbytes,
}


class Subject:
    """One fine-tune, and its answers.  folder: its checkpoint;  place: where adapters are put."""

    def __init__(self, name: str, folder: Path, texts: list, place: Path):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name, self.folder, self.texts, self.place = name, folder, texts, place
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.classifier = AutoModelForSequenceClassification
        self.reference = self.answers(self.classifier.from_pretrained(folder).eval())
        self.plain: dict[float, Path] = {}

    def answers(self, model: Any, **options: Any) -> Tensor:
        return evaluate.logits(partial(model, **options), self.tokenizer, self.texts)

    def kl(self, model: Any, **options: Any) -> float:
        return metrics.kl(self.answers(model, **options), self.reference)

    def adapter(self, size: float) -> Path:
        """Of the full-precision base."""
        if size not in self.plain:
            out = self.place / f"{self.name}-{size}"
            dts.compress(base_folder(), self.folder, out=out, budget=size)
            self.plain[size] = out
        return self.plain[size]

    def row(self, kind: str, size: float) -> dict[str, Any]:
        """The KL of each arm, and the bytes of both adapters."""
        made_for = self.place / f"{self.name}-{kind}-{size}"
        plain = self.adapter(size)
        full = dts.DTSModel.from_pretrained(base_folder(), adapters={"plain": plain})
        quantised = dts.DTSModel.from_pretrained(
            base_folder(), adapters={"plain": plain}, quantization_config=KINDS[kind]()
        )
        numbers = dts.DTSModel.from_pretrained(base_folder(), quantization_config=KINDS[kind]()).model
        made = dts.compress(numbers, self.folder, out=made_for, budget=size, base_is="quantised", name="made")
        with warnings.catch_warnings():
            warnings.simplefilter("error", QuantisedBase)  # it is the base that it was made for
            quantised.load_task("made", made_for)
        itself = self.classifier.from_pretrained(self.folder, quantization_config=KINDS[kind]()).eval()
        return {
            "task": self.name,
            "kind": kind,
            "size": size,
            "samples": len(self.texts),
            "full": self.kl(full, tasks="plain"),
            "over": self.kl(quantised, tasks="plain"),
            "made": self.kl(quantised, tasks="made"),
            "none": self.kl(itself),
            "bytes": [dts.Adapter.load(plain).nbytes, made.nbytes],
            "methods": [dts.Adapter.load(plain).config["method"], made.config["method"]],
        }


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 2 wrong options, or data or packages missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.quantised",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", type=list_of(str), default=["trec6", "sick_e", "stackoverflow20"])
    parser.add_argument("--kinds", type=list_of(str), default=list(KINDS))
    parser.add_argument("--sizes", type=list_of(float), default=[0.01, 0.04])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    for what, asked, names in (("task", options.tasks, text.TRAINING), ("kind", options.kinds, KINDS)):
        if unknown := [name for name in asked if name not in names]:
            parser.error(f"no {what} {', '.join(unknown)}; there are {', '.join(names)}")
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    if not options.table:
        make_place(parser, options.out)
        hush()
        try:
            rows = _measured(options, rows)
        except MissingData as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return 2
    print(table(rows))
    return 0


def _measured(options: argparse.Namespace, rows: list[dict]) -> list[dict]:
    known = {(row["task"], row["kind"], row["size"]) for row in rows}
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as place:
        for task, _, folder in text.finetunes(options.tasks, [0], every=True):
            left = [(k, s) for k in options.kinds for s in options.sizes if (task.name, k, s) not in known]
            texts, _ = task.split("test")
            texts = texts[:: max(1, -(-len(texts) // SAMPLES))]
            subject = Subject(task.name, folder, texts, Path(place)) if left else None
            for kind, size in left:
                assert subject is not None
                rows.append(subject.row(kind, size))
                print(rows[-1], file=sys.stderr, flush=True)
                with open(options.out, "a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    return rows


def table(rows: list[dict]) -> str:
    """Means over tasks, for each kind and size."""
    cells: dict[tuple[str, float], list[dict]] = {}
    for row in rows:
        cells.setdefault((row["kind"], row["size"]), []).append(row)
    lines = [
        "| base | size | full | over | made | fine-tune quantised | tasks |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (kind, size), cell in sorted(cells.items()):
        means = " | ".join(f"{sum(row[arm] for row in cell) / len(cell):.4f}" for arm in (*ARMS, "none"))
        lines.append(f"| {kind} | {100 * size:g} % | {means} | {len(cell)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
