"""What is raised of two models that do not belong together, one line a cause."""

import re

from dts.checkpoint.errors import some

OTHER_REASONS = 3  # of one kind that have a line each


class Mismatch(ValueError):
    """The two models do not belong together; ``mismatches`` has a line for each tensor, the text one for each cause.

    way: how to go on.
    """

    def __init__(self, what: str, mismatches: list[str], way: str | None = None):
        self.mismatches = mismatches
        lines = [*causes(mismatches), *([way] if way else [])]
        super().__init__(f"{what}: {len(mismatches)} mismatches\n  " + "\n  ".join(lines))


def causes(mismatches: list[str]) -> list[str]:
    """Lines "name [shape]: reason" with those of one reason in one; numbers in a reason make no other one."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in mismatches:
        name, _, reason = line.partition(": ")
        found.setdefault(re.sub(r"\d+(, \d+)*", "*", reason), {}).setdefault(reason, []).append(name)
    lines = []
    for reasons in found.values():
        if len(reasons) <= OTHER_REASONS:
            lines += [": ".join([some(names), reason] if reason else names) for reason, names in reasons.items()]
        else:  # of a model of another size all shapes differ
            each = [f"{name}: {reason}" for reason, names in reasons.items() for name in names]
            lines.append(f"{'; '.join(each[:OTHER_REASONS])}; and so {len(each) - OTHER_REASONS} more")
    return lines
