"""Tasks never seen: an encoder made from the other tasks' adapters, beside merged models and single tasks."""

from __future__ import annotations

import warnings

from benchmarks.quality.merging.study import Study
from benchmarks.quality.merging.tested import Tested, encoder_of, state_of
from dts.unseen import mix, task_weights

RULES: dict[str, dict] = {
    "default": {},
    "top 1": {"top_k": 1},
    "top 3": {"top_k": 3},
    "temperature 0.1": {"temperature": 0.1},
    "temperature 0.03": {"temperature": 0.03},
    "floor 0.2": {"floor": 0.2},
    "negative": {"negative": True},
}
MERGED = ("average", "ties")


def held_out(study: Study, budget: float) -> list[dict]:
    """Groups of held-out tasks, each from the adapters of all tasks outside its group."""
    out = []
    for group in groups_of_three([t.task.name for t in study.tested]):
        seen = [t for t in study.tested if t.task.name not in group]
        for target in study.tested:
            if target.task.name in group:
                out += _task(study, target, seen, budget)
    return out


def groups_of_three(names: list[str]) -> list[list[str]]:
    """Every task is held out once, three at a time (the last group holds what is left)."""
    if len(names) <= 3:
        return [[name] for name in names]
    return [names[i : i + 3] for i in range(0, len(names), 3)]


def _task(study: Study, target: Tested, seen: list[Tested], budget: float) -> list[dict]:
    adapters = study.adapters(budget, seen)
    about = {
        "names": target.task.class_names,
        "description": target.task.question,
        "numbers": [str(i) for i in range(len(target.task.class_names))],
    }
    encoders = {"pretrained": lambda: dict(state_of(study.base)), "fine-tuned": lambda: None}
    for method in [m for m in MERGED if m in study.methods]:
        encoders[method] = lambda method=method: study.merged(method, seen)
    for name, adapter in adapters.items():
        encoders[f"single {name}"] = lambda adapter=adapter: encoder_of(adapter, study.base)

    def mixture(rule: dict, text):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that say nothing: that is what "numbers" measures
            weights = task_weights(text, adapters, study.encode, **rule)
            if not len(weights):
                return dict(state_of(study.base))
            return encoder_of(mix(adapters, weights, base=study.base), study.base)

    for rule, options in RULES.items():
        encoders[f"mixture {rule}"] = lambda options=options: mixture(options, about["names"])
    for kind in ("description", "numbers"):
        encoders[f"mixture from {kind}"] = lambda kind=kind: mixture({}, about[kind])
    where = {"task": target.task.name, "budget": budget, "seen": [t.task.name for t in seen]}

    def figures(make):
        encoder = make()
        return {"accuracy": target.accuracy(encoder), "zero_shot": target.zero_shot(encoder)}

    return [
        study.measure("unseen", where | {"encoder": name}, lambda make=make: figures(make), [target, *seen])
        for name, make in encoders.items()
    ]
