"""What figures mean, in a sentence."""

from __future__ import annotations

import math

TIMES = 1.96  # standard errors of an interval that holds with 95 %


def interval(share: float, count: int) -> tuple[float, float]:
    """(low, high) of a share that was found among ``count``, at 95 %: Wilson's score interval."""
    z = TIMES**2 / count
    middle, half = share + z / 2, TIMES * math.sqrt(share * (1 - share) / count + z / (4 * count))
    return max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))


def verdict(agreement: float, count: int, what: str = "inputs", made_up: bool = False) -> str:
    """ "answers as the fine-tune on 99.5 % of 1,000 inputs": what was counted, and how sure that is.

    count: answers that were compared;  what: they are, "inputs" or "tokens".
    """
    low, high = interval(agreement, count)
    said = f"answers as the fine-tune on {floor(agreement)} % of {count:,} {'made-up ' * made_up}{what}"
    # neighbouring tokens are no independent draws, so nothing is said of how sure that is
    sure = f" (95 % interval: {floor(low)} to {100 * high:.1f} %)" if what == "inputs" else ""
    return said + sure + (": real ones may differ, give some by --data" if made_up else "")


def floor(share: float) -> str:
    """A share in %, never rounded up to 100."""
    return f"{math.floor(1000 * share + 1e-9) / 10:.1f}"
