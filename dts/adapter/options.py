"""What `dts.compress` was asked for: one value, checked once, noted by a run and compared when it is continued."""

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from dts import __version__
from dts.adapter.digests import FORMAT_VERSION
from dts.adapter.route import InputStatistics
from dts.adapter.vectors import ASKED, EXACT, Rounding, rounding_for
from dts.checkpoint.vocabulary import SHARED
from dts.codec.method import Choice
from dts.codec.methods import CHOICES, LOSSLESS
from dts.devices import device_named

ADAPTER_KINDS = ("task", "difference")
BASES = ("plain", "quantised")
VECTORS = ("auto", *ASKED)
SIZES = ("budget", "nbytes", "rank_fraction", "target_error")
IN_BYTES = ("budget", "nbytes")
DEFAULT_BUDGET = 0.01


def is_size(value: Any) -> bool:
    """A number above 0; True is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < value < math.inf  # type: ignore[operator]


@dataclass(frozen=True)
class Options:
    """The parameters of `dts.compress` of these names, which says what they mean.

    Raises ValueError naming all that cannot be.
    """

    method: str = "auto"
    budget: float | None = None
    nbytes: float | None = None
    rank_fraction: float | None = None
    target_error: float | None = None
    vectors: str = "auto"
    kind: str = "task"
    base_is: str = "plain"
    name: str | None = None
    class_names: list[str] | None = None
    description: str | None = None
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    device: Any = None
    seed: int = 0
    command: str | None = None
    allow_empty: bool = False
    only: str | None = None
    vocabulary: str | None = None
    inputs: InputStatistics | None = None

    def __post_init__(self):
        wrong = [
            f"{what} must be one of {', '.join(choices)}, not {value!r}"
            for what, value, choices in (
                ("method", self.method, CHOICES),
                ("kind", self.kind, ADAPTER_KINDS),
                ("vectors", self.vectors, VECTORS),
                ("base_is", self.base_is, BASES),
            )
            if value not in choices
        ]
        if self.vocabulary not in (None, SHARED):
            wrong.append(f"vocabulary must be {SHARED!r} or None, not {self.vocabulary!r}")
        if self.only is not None and not (isinstance(self.only, str) and self.only):
            wrong.append(f"only must be the name of a part of the base, not {self.only!r}")
        if isinstance(self.class_names, tuple):
            object.__setattr__(self, "class_names", list(self.class_names))
        wrong += self._not_exactly() if self.exact else []
        asked = self.asked
        if len(asked) > 1 or not all(map(is_size, asked.values())):
            wrong.append(
                f"give one size, a number above 0: budget=, nbytes=, rank_fraction= or target_error=; got {asked}"
            )
        elif self.target_error is not None and self.target_error >= 1:
            wrong.append(f"target_error={self.target_error}: an error of 1 is that of the base alone; give less")
        if self.method in CHOICES and not CHOICES[self.method].to_error and self.target_error is not None:
            wrong.append(
                f'a {self.method} adds noise larger than the difference: give method="{self.method}" a budget=, '
                "nbytes= or rank_fraction=, not a target_error="
            )
        if not wrong or self.device is not None:
            try:
                self.place  # noqa: B018  it is looked whether it is there
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def place(self) -> torch.device:
        """The device to compute on: a CPU unless another one is asked for, "auto" a GPU where there is one."""
        return device_named("cpu" if self.device is None else self.device)

    def _not_exactly(self) -> list[str]:
        """What does not go with method "exact"."""
        sizes = [f"{size}=" for size in SIZES if getattr(self, size) is not None]
        wrong = []
        if sizes:
            wrong.append(
                f'method="exact" stores all that changed, however many bytes that takes: leave {", ".join(sizes)} out'
            )
        if str(self.device) not in ("None", "cpu", "auto"):
            wrong.append(f'device={self.device!r}: method="exact" computes on the CPU: leave it out')
        if self.vectors not in ("auto", "exact"):
            wrong.append(f'vectors="{self.vectors}" rounds, and method="exact" keeps every bit: leave it out')
        if self.base_is != "plain":
            wrong.append(
                'base_is="quantised": method="exact" needs the bits of a base that is stored as numbers, not those '
                "that codes are turned into"
            )
        return wrong

    @property
    def exact(self) -> bool:
        """Is it asked for every bit?"""
        return self.method == LOSSLESS.name

    @property
    def asked(self) -> dict[str, float]:
        """The sizes that were given, by name; the default where none was.  Method "exact" has none."""
        if self.exact:
            return {}
        sizes = {size: getattr(self, size) for size in SIZES}
        return {size: value for size, value in sizes.items() if value is not None} or {"budget": DEFAULT_BUDGET}

    @property
    def in_bytes(self) -> bool:
        """Is the size a number of bytes?"""
        return self.asked.keys() <= set(IN_BYTES)

    @property
    def beside(self) -> int:
        """Bytes of the folder that are what a router knows."""
        return 0 if self.inputs is None else self.inputs.nbytes

    @property
    def choice(self) -> Choice:
        """The method, or the rule that will choose it."""
        return CHOICES[self.method].for_size(self.in_bytes)

    @property
    def exact_vectors(self) -> bool:
        """Are biases, norms and heads stored as they are, rather than in few bits?"""
        if self.vectors == "auto":
            return not (self.in_bytes and self.choice.rounds_vectors)
        return self.vectors == "exact"

    def rounding(self, nbytes: float, vectors: int, heads: int) -> Rounding:
        """Of vectors and heads of so many elements, in an adapter of ``nbytes`` where bytes are asked for."""
        if self.exact_vectors:
            return EXACT
        return rounding_for(nbytes, vectors, heads) if self.vectors == "auto" else ASKED[self.vectors]

    @property
    def told(self) -> str:
        """The command, as the adapter notes it.  Without the bytes asked for: the text's length would change what they
        have to hold."""
        shown = " ".join(f"{size}={value}" for size, value in self.asked.items() if size not in IN_BYTES)
        return self.command or f"compress {shown}".strip()

    def recorded(self, base: str, finetuned: str) -> dict[str, Any]:
        """All that the entries depend on, as a run notes it: it is continued only by one of the same.

        base, finetuned: fingerprints.
        """
        routed = {} if self.inputs is None else {"inputs": self.inputs.digest}
        return (
            self.asked
            | routed
            | {
                "method": self.choice.name,
                "vectors": "exact" if self.exact_vectors else self.vectors,
                "seed": self.seed,
                "base": base,
                "finetuned": finetuned,
                "format_version": FORMAT_VERSION,
                "device": _full_name(self.place),
                "package": __version__,
                "torch": torch.__version__,
                "code": code_digest(),
            }
        )


def _full_name(place: torch.device) -> str:
    """A device's, with its model: another one rounds otherwise."""
    return f"{place.type} ({torch.cuda.get_device_name(place)})" if place.type == "cuda" else str(place)


@cache
def code_digest() -> str:
    """16 hex digits over the code that makes entries: a version number does not change with every line."""
    here = Path(__file__).parent
    total = hashlib.sha256()
    for file in sorted([*here.rglob("*.py"), *(here.parent / "codec").rglob("*.py")]):
        total.update(file.read_bytes())
    return total.hexdigest()[:16]
