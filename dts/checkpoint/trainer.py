"""The folder of a trainer's run: which of the checkpoints inside it is the model."""

import re
from collections.abc import Callable
from pathlib import Path

from dts.checkpoint.json_file import json_object

NUMBERED = re.compile(r"checkpoint-(\d+)")


def checkpoints(run: Path, holds_weights: Callable[[Path], bool]) -> list[Path]:
    """The folders ``checkpoint-<step>`` in a run's that have weights, by their steps."""
    found = [(int(match[1]), path) for path in run.iterdir() if (match := NUMBERED.fullmatch(path.name))]
    return [path for _, path in sorted(found) if holds_weights(path)]


def best_or_last(found: list[Path]) -> tuple[Path, str]:
    """(one of them, why it): the best, where the run had a measure for that, else the last."""
    state = found[-1] / "trainer_state.json"
    best = json_object(state).get("best_model_checkpoint") if state.is_file() else None
    if isinstance(best, str):  # wherever the run was when it was written
        name = best.replace("\\", "/").rstrip("/").rpartition("/")[2]
        for path in found:
            if path.name == name:
                return path, f"the best of {len(found)} by {state.parent.name}/{state.name}"
        gone = f", as {name}, the best by {state.parent.name}/{state.name}, is not there"
    else:
        gone = ""
    return found[-1], (f"the last of {len(found)}" if len(found) > 1 else "the only one") + gone
