"""What a squared error means for answers: how often adapters of that error answered as their fine-tunes did.

Known of models that were measured, and no more than a prediction for any other; `dts eval` measures.
"""

from __future__ import annotations

import math

# method -> suite -> (squared error, share of answers that are the fine-tune's), means over the tasks of
# benchmarks/results/quality: 12 of text and 9 of images (classes), 3 of language models (tokens).  Of "sketch" without
# 0.1 %, where most matrices have no sample.
MEASURED: dict[str, dict[str, list[tuple[float, float]]]] = {
    "residual": {
        "text": [(0.068, 0.996), (0.145, 0.993), (0.242, 0.989), (0.351, 0.978), (0.467, 0.963), (0.618, 0.91)],
        "images": [(0.074, 0.989), (0.166, 0.977), (0.296, 0.955), (0.452, 0.921), (0.612, 0.872), (0.79, 0.725)],
        "language": [(0.188, 0.986), (0.394, 0.962), (0.65, 0.913)],
    },
    "sketch": {
        "text": [(0.353, 0.998), (1.379, 0.996), (3.98, 0.99), (10.392, 0.984), (29.435, 0.968)],
        "images": [(0.373, 0.983), (1.565, 0.969), (4.769, 0.933), (12.761, 0.903), (38.605, 0.799)],
        "language": [(1.071, 0.992), (5.087, 0.981), (31.262, 0.95)],
    },
    "paper": {
        "text": [(0.317, 0.971), (0.362, 0.97), (0.415, 0.968), (0.48, 0.96), (0.558, 0.931), (0.702, 0.81)],
        "images": [(0.331, 0.887), (0.378, 0.884), (0.45, 0.878), (0.541, 0.858), (0.659, 0.805), (0.813, 0.619)],
        "language": [(0.38, 0.938), (0.511, 0.923), (0.685, 0.882)],
    },
}
TASKS = {"text": 12, "images": 9, "language": 3}


def expected_agreement(method: str, squared_error: float | None) -> dict[str, float] | None:
    """{suite: share of answers}, between the errors that were measured; None beyond them, for other methods, and where
    nothing is missing, as of a mixture, which has no fine-tune."""
    suites = MEASURED.get(method)
    if suites is None or not squared_error:
        return None
    found = {}
    for suite, points in suites.items():
        if squared_error <= points[0][0]:
            found[suite] = points[0][1]
        elif squared_error <= points[-1][0]:
            found[suite] = _between(points, squared_error)
    return found or None


def _between(points: list[tuple[float, float]], error: float) -> float:
    """Linear between two neighbours."""
    (low, at_low), (high, at_high) = next(pair for pair in zip(points, points[1:]) if error <= pair[1][0])
    return at_low + (at_high - at_low) * (error - low) / (high - low)


def span(method: str, squared_error: float | None) -> str | None:
    """ "96 to 98 %", from the suite that answered as its fine-tunes least often to the one that did most often."""
    found = expected_agreement(method, squared_error)
    if found is None or squared_error is None:
        return None
    shares = [math.floor(100 * share) for share in (min(found.values()), max(found.values()))]
    beyond = all(squared_error < MEASURED[method][suite][0][0] for suite in found)  # closer than any that was measured
    return ("at least " if beyond else "about ") + " to ".join(map(str, dict.fromkeys(shares))) + " %"


def in_words(method: str, squared_error: float | None) -> str | None:
    """A sentence for a person, which says that it is predicted and from what; None where nothing is known."""
    found, shares = expected_agreement(method, squared_error), span(method, squared_error)
    if found is None or shares is None:
        return None
    count = sum(TASKS[suite] for suite in found)
    return (
        f"the fine-tune's own answers on {shares} of inputs, predicted from {count} tasks that were measured with this "
        "method and error; of this model dts eval measures it"
    )
