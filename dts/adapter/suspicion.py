"""Two models that may not be what was meant: said in words, before an adapter is made of them."""

import re

from dts.adapter.accounting import Suspicious
from dts.adapter.text import dtype_name
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
    return (
        f"{finetuned.source} changes nothing: all its {len(pairing.pairs)} tensors are those of {base.source}"
        f"{dtype}{left}.  Is it the right model?  "
        "An empty adapter is made with allow_empty (--allow-empty)"
    )


def look(pairing, moved: float) -> None:
    """Warns of models that look unrelated or exchanged.  moved: ||finetuned - base|| / ||base|| over the matrices."""
    base, finetuned = pairing.base, pairing.finetuned
    if moved > 1:
        warn(
            f"{finetuned.source} moved by {moved:.0%} of the norm of {base.source}, fine-tunes move by a few "
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
