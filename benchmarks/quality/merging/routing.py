"""No task id: which task a text is of, and what answering by it costs in accuracy and in time."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from benchmarks.quality.merging.study import Study
from benchmarks.quality.merging.tested import Tested, encoder_of, flat, spread
from dts.demo.finetune import base_folder, tokenize
from dts.unseen import EnergyRouter, NameRouter, ProbeRouter, scrambled
from dts.unseen.likelihood import LikelihoodRouter
from dts.unseen.statistics import input_statistics

POOL = 50  # training texts a task that the probe learns from, and that an energy router may take as zero
EXAMPLES = (64, 256)  # training texts a task that adapters know their inputs by
TIMED = 200  # texts, spread over all, that a pass is timed on
NEAR_DUPLICATES = {"cr": "sst2", "hwu64": "snips"}  # both sentiment of reviews; both commands to the same assistants


def routing(study: Study, budget: float) -> list[dict]:
    """Every router among all tasks and, where that leaves fewer, among those that are not near-duplicates."""
    names = {t.task.name for t in study.tested}
    distinct = [t for t in study.tested if NEAR_DUPLICATES.get(t.task.name) not in names]
    rows = _among("all", study, study.tested, budget)
    return rows + (_among("distinct", study, distinct, budget) if 1 < len(distinct) < len(study.tested) else [])


def _among(which: str, study: Study, tested: list[Tested], budget: float) -> list[dict]:
    adapters = study.adapters(budget, tested)
    names = list(adapters)
    texts = [flat(text) for t in tested for text in t.texts]
    gold = [t.task.name for t in tested for _ in t.texts]
    pools = {t.task.name: [flat(text) for text in spread(t.task.split("train")[0], POOL)] for t in tested}
    model, tokenizer = load_encoder()
    batch = dict(tokenize(tokenizer, texts))
    timing = {name: value[:: -(-len(texts) // TIMED)] for name, value in batch.items()}

    @cache
    def a_pass() -> float:
        """Seconds of one pass of the base over the timed rows."""
        return timed(lambda: encode_all(model, timing))

    @cache
    def right() -> list[bool]:
        """Which rows their own task's adapter answers right."""
        return torch.cat([t.right(encoder_of(adapters[t.task.name], study.base)) for t in tested]).tolist()

    def energies(blocks: int, calibration: str) -> EnergyRouter:
        """blocks: 0 for the inputs of the first block alone."""
        router = EnergyRouter.of(model, adapters, blocks=max(1, blocks))
        if not blocks:
            router = router.first_layers(model, batch)
        if calibration == "scrambled":
            router.calibrate(model, scrambled(batch, tokenizer.vocab_size))
        elif calibration == "pool":
            router.calibrate(model, dict(tokenize(tokenizer, [text for pool in pools.values() for text in pool])))
        return router

    def chosen(router: EnergyRouter | LikelihoodRouter) -> dict:
        share = timed(lambda: router.route(model, timing)) / a_pass()
        return {"share_of_a_pass": share, **routed(router.route(model, batch).tasks, gold, names, right())}

    def likelihood(examples: int, beside: str) -> dict:
        """beside: the energies' calibration, "" for none of them."""
        for t in tested:
            drawn = [flat(text) for text in spread(t.task.split("train")[0], examples)]
            told = input_statistics(model, [dict(tokenize(tokenizer, drawn))])
            adapters[t.task.name] = replace(adapters[t.task.name], inputs=told)
        router = LikelihoodRouter.of(model, adapters)
        return chosen(replace(router, energies=energies(0, beside)) if beside else router)

    def nearest() -> dict:
        choice = NameRouter(adapters, study.encode).route(texts)
        return routed(choice.tasks, gold, names, right())

    def probe() -> dict:
        fitted = ProbeRouter.fit({name: study.encode(pool) for name, pool in pools.items()})
        return routed(fitted.route(study.encode(texts)).tasks, gold, names, right())

    routers = {
        f"energy, {blocks} blocks, {how}": lambda blocks=blocks, how=how: chosen(energies(blocks, how))
        for blocks in (0, 1)
        for how in ("none", "scrambled", "pool")
    }
    routers |= {
        f"{examples} examples" + (f", energy, {beside}" if beside else ""): lambda examples=examples, beside=beside: (
            likelihood(examples, beside)
        )
        for examples in EXAMPLES
        for beside in ("", "scrambled", "pool")
    }
    routers |= {"nearest class name": nearest, f"probe, {POOL} samples a task": probe}
    return [
        study.measure("routing", {"router": router, "budget": budget, "among": which}, function, tested)
        for router, function in routers.items()
    ]


def load_encoder():
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(base_folder()).eval()
    return model, AutoTokenizer.from_pretrained(base_folder(), model_max_length=64)


@torch.inference_mode()
def encode_all(model, batch) -> Tensor:
    return model(**batch).last_hidden_state


def routed(chosen: list[str | None], gold: list[str], names: list[str], right: list[bool]) -> dict:
    """Of each task: share of rows routed right, where the others went, accuracy with the true task and as routed.

    An answer of another task's head counts as wrong.
    """
    figures = {"routed": {}, "wrong": {}, "accuracy": {}, "accuracy_routed": {}}
    for name in names:
        found = [(c, ok) for c, g, ok in zip(chosen, gold, right) if g == name]
        tasks = [c for c, _ in found]
        figures["routed"][name] = tasks.count(name) / len(found)
        figures["wrong"][name] = {str(other): tasks.count(other) for other in sorted(set(tasks) - {name}, key=str)}
        figures["accuracy"][name] = statistics.fmean(ok for _, ok in found)
        figures["accuracy_routed"][name] = statistics.fmean(ok and c == name for c, ok in found)
    return figures


def timed(function) -> float:
    """Seconds: the median of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
