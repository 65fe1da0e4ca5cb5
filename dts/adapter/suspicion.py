"""Two models that may not be what was meant: said in words, before an adapter is made of them."""

import re

from dts.adapter.errors import Suspicious
from dts.adapter.text import dtype_name
from dts.checkpoint import Checkpoint
from dts.checkpoint.errors import some
from dts.sites.configs import OtherConfig, otherwise
from dts.warn import warn

HEAD = re.compile(r"(^|\.)(classifier|classification_head|score|qa_outputs)\.")  # of a task, not of pretraining


def unchanged(pairing) -> str:
    """What to say of a fine-tune that equals its base."""
    base, finetuned = pairing.base, pairing.finetuned
    dtype = (
        ""
        if base.main_dtype == finetuned.main_dtype
        else (f" (but for the dtype: {dtype_name(finetuned.main_dtype)}, the base has {dtype_name(base.main_dtype)})")
    )
    left = f"; it lacks the base's {', '.join(pairing.base_only[:5])}" if pairing.base_only else ""
    if how := otherwise(base.config, finetuned.config):
        left += f"; its config alone is another one, which no adapter changes: {how}"
    return (
        f"{finetuned.source} changes nothing: all its {len(pairing.pairs)} tensors are those of {base.source}"
        f"{dtype}{left}.  Is it the right model?  "
        "An empty adapter is made with allow_empty (--allow-empty)"
    )


def other_classes(pairing, class_names: list[str] | None) -> str | None:
    """What to say of names that are not as many as the classes that the fine-tune's config names."""
    labels = (pairing.finetuned.config or {}).get("id2label") or ()
    if not class_names or not labels or len(labels) == len(class_names):
        return None
    return (
        f"{len(class_names)} names of classes were given, and {pairing.finetuned.source} has {len(labels)}: answers "
        "keep the names that its config has for them"
    )


def not_numbers(pairing) -> str:
    """Which tensors of which model have NaN, or infinite elements where a matrix has no room for them; in a line each.

    Reads both models: for an error, so that it says at once all that is to be mended.
    """
    lines = []
    for what, model in (("base", pairing.base), ("fine-tune", pairing.finetuned)):
        found = [name for name in model.names if model.dtype(name).is_floating_point and _strange(model, name)]
        if found:
            lines.append(f"the {what} {model.source} has elements that are no finite numbers in {some(found)}")
    return "".join(f"\n  {line}" for line in lines)


def _strange(model: Checkpoint, name: str) -> bool:
    value = model.load(name)
    wrong = ~value.float().isfinite() if value.dim() > 1 else value.float().isnan()  # masks may be infinite
    strange = bool(wrong.any())
    model.release(name)
    return strange


def _percent(share: float) -> str:
    return f"{share:.0%}" if share < 100 else f"{100 * share:.1e}%"


def look(pairing, moved: float) -> None:
    """Warns of models that look unrelated or exchanged, or compute otherwise with their weights.

    moved: ||finetuned - base|| / ||base|| over the matrices.
    """
    base, finetuned = pairing.base, pairing.finetuned
    if how := otherwise(base.config, finetuned.config):
        warn(
            f"{finetuned.source} does not compute as {base.source}: {how}.  An adapter changes weights alone: a model "
            "that dts apply writes has the fine-tune's config, and what runs over the base (DTSModel, dts serve) the "
            "base's, whose answers are others",
            OtherConfig,
        )
    if moved > 1:
        warn(
            f"{finetuned.source} moved by {_percent(moved)} of the norm of {base.source}, fine-tunes move by a few "
            "percent: is this the base it was trained from?",
            Suspicious,
        )
    heads = [name for name in pairing.base_only if HEAD.search(name)]
    own = [p.name for p in pairing.pairs.values() if p.base_name is None]
    if heads and not own:
        warn(
            f"the base {base.source} has a task's head ({', '.join(heads[:5])}) that {finetuned.source} "
            "lacks: are the two exchanged?",
            Suspicious,
        )
