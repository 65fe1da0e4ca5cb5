"""What became of every tensor of every model: nothing is left out without a word.

A row a tensor: changed, equal, new, absent, tied, dropped or skipped, with the reason where it is not plain, and the
name it goes by where that is another one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

from dts.adapter.errors import Unaccounted

WHAT = ("changed", "equal", "new", "absent", "tied", "dropped", "skipped")


@dataclass(frozen=True)
class Fate:
    """One tensor of one model.

    name: in its file;  model: which one, "base", "finetuned" or a source;  what: one of ``WHAT``;
    stored: how an adapter has it;  written_as: its other name where it has one;  why: in words, if there is a reason.
    """

    name: str
    model: str
    what: str
    stored: str | None = None
    written_as: str | None = None
    why: str | None = None

    def __post_init__(self):
        if self.what not in WHAT:
            raise ValueError(f"what must be one of {', '.join(WHAT)}, not {self.what!r}")


@dataclass
class Account:
    """Every tensor of every model."""

    fates: list[Fate] = field(default_factory=list)

    def add(self, *fields, **more) -> None:
        self.fates.append(Fate(*fields, **more))

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """model -> what -> how many; ``renamed`` counts those that go by another name."""
        found: dict[str, Counter] = {}
        for fate in self.fates:
            count = found.setdefault(fate.model, Counter())
            count[fate.what] += 1
            count["renamed"] += fate.written_as is not None
        order = (*WHAT, "renamed")
        return {model: {what: count[what] for what in order if count[what]} for model, count in found.items()}

    def of(self, model: str, what: str | None = None) -> list[Fate]:
        return [f for f in self.fates if f.model == model and what in (None, f.what)]

    def as_dict(self) -> dict:
        """Plain data for JSON: the counts, and a row a tensor without what is not said of it."""
        rows = [{key: value for key, value in asdict(fate).items() if value is not None} for fate in self.fates]
        return {"counts": self.counts, "tensors": rows}

    def text(self) -> str:
        """The counts in a line a model: "base: 12 changed, 3 equal"."""
        return "; ".join(
            f"{model}: {', '.join(f'{n} {what}' for what, n in counts.items())}"
            for model, counts in self.counts.items()
        )

    def complete(self, model: str, names) -> None:
        """Raises Unaccounted for tensors of a model without exactly one row."""
        rows = Counter(fate.name for fate in self.of(model))
        wrong = [name for name in names if rows[name] != 1] + [name for name in rows if name not in set(names)]
        if wrong:
            raise Unaccounted(
                f"nothing is known of what became of {len(wrong)} tensors of the {model}: {', '.join(wrong[:20])}"
            )
