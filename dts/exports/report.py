"""What an export holds of an adapter, and what it loses."""

from dataclasses import dataclass, field
from pathlib import Path


class NotExact(ValueError):
    """An adapter that another format holds with a loss that nobody has asked for."""


@dataclass(frozen=True)
class Exported:
    """One changed parameter of the model, by its name there.

    how: "lora", "whole" (its module as it is), "bias" (a difference or value beside a LoRA), or "left out";
    rank: of a LoRA, else 0;  energy: ||delta||^2 of the adapter's difference, 0 of what only the fine-tune has;
    error: ||delta - exported||^2;  why: it is left out;
    again: another parameter is the same tensor, and counts for both.
    """

    name: str
    how: str
    rank: int
    energy: float
    error: float
    why: str = ""
    again: bool = False

    @property
    def squared_error(self) -> float:
        """Relative: 0 is exact, 1 is nothing."""
        return self.error / self.energy if self.energy else float(self.how == "left out")


@dataclass(frozen=True)
class Export:
    """What was written: the folder or file, its bytes, every changed parameter, and what its user must know."""

    out: Path
    nbytes: int
    parameters: tuple[Exported, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def squared_error(self) -> float:
        """||delta - exported||^2 / ||delta||^2 of all of the adapter's differences together; 0 where it has none."""
        counted = [one for one in self.parameters if not one.again]
        energy = sum(one.energy for one in counted)
        return sum(one.error for one in counted) / energy if energy else 0.0

    @property
    def left_out(self) -> list[Exported]:
        return [one for one in self.parameters if one.how == "left out"]

    def worst(self, count: int = 5) -> list[Exported]:
        """The parameters that lose most, the most first; none of those that lose nothing."""
        lossy = [one for one in self.parameters if one.squared_error > 0]
        return sorted(lossy, key=lambda one: -one.squared_error)[:count]

    def as_dict(self) -> dict:
        """Plain data for JSON."""
        return {
            "out": str(self.out),
            "bytes": self.nbytes,
            "squared_error": self.squared_error,
            "notes": list(self.notes),
            "parameters": [
                {
                    "name": one.name,
                    "how": one.how,
                    "rank": one.rank,
                    "squared_error": one.squared_error,
                    **({"why": one.why} if one.why else {}),
                }
                for one in self.parameters
            ],
        }
