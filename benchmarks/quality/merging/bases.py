"""Merged models alone, and adapters to them (DTS-D) beside adapters to the pretrained base (DTS-T)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

import dts
from benchmarks.quality.merging.study import CODEC, Study
from benchmarks.quality.merging.tested import encoder_of, state_of
from dts.checkpoint import open_checkpoint

DIFFERENCE_BASES = ("average", "ties", "tsv_merge", "remainder")


def merged_models(study: Study) -> list[dict]:
    """Every merging method alone, and the two ends: the pretrained base and the fine-tunes themselves."""
    out = []
    for method in ["pretrained", *study.methods, "fine-tuned"]:

        def figures(method=method):
            encoder = {"pretrained": lambda: dict(state_of(study.base)), "fine-tuned": lambda: None}.get(
                method, lambda: study.merged(method, study.tested)
            )()
            return {"accuracy": {t.task.name: t.accuracy(encoder) for t in study.tested}}

        out.append(study.measure("bases", {"method": method}, figures))
    return out


def adapters(study: Study, budgets: Iterable[float]) -> list[dict]:
    """DTS-T and DTS-D: accuracy of every task from its adapter, and the bytes of all adapters together."""
    on = ["pretrained", *(m for m in DIFFERENCE_BASES if m in study.methods)]
    return [
        study.measure(
            "adapters",
            {"base": base, "budget": budget},
            lambda base=base, budget=budget: _adapters_on(study, base, budget),
        )
        for budget in budgets
        for base in on
    ]


def _adapters_on(study: Study, on: str, budget: float) -> dict:
    accuracy, nbytes, pretrained = {}, 0, on == "pretrained"
    with tempfile.TemporaryDirectory() as folder:
        base = study.base
        if not pretrained:  # as `dts compress --merge`: a base in memory has no tokenizer, and adapters would carry one
            dts.merge(study.base, [t.folder for t in study.tested], on, out=folder, seed=study.seed)
            base = open_checkpoint(folder)
        for t in study.tested:
            kind = "task" if pretrained else "difference"
            adapter = dts.compress(base, t.folder, method=CODEC, budget=budget, name=t.task.name, kind=kind)
            accuracy[t.task.name] = t.accuracy(encoder_of(adapter, base))
            nbytes += adapter.nbytes
    return {"accuracy": accuracy, "nbytes": nbytes}
