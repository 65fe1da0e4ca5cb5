"""Method "auto": a sketch where it does best, else residual components."""

from . import residual, sketch
from .method import Choice, Method

# A sketch's noise grows with the difference.  *Measured*: language models that moved by .004 of their weights and text
# encoders that moved by .02 gain from it, image encoders that moved by .05 lose (benchmarks/quality/FINDINGS.md).
NEAR = 0.03


class Auto(Choice):
    """A rule, not a method: a sketch where bytes are asked for and the fine-tune is nearer to its base than NEAR."""

    name = "auto"
    about = "sketch where bytes are asked for and the weights moved by less than 3 %, else residual"

    def for_size(self, in_bytes: bool) -> Choice:
        return self if in_bytes else residual.METHOD

    def for_distance(self, moved: float) -> Method:
        return sketch.METHOD if moved < NEAR else residual.METHOD


CHOICE = Auto()
