"""Warnings that point at the line of the program that called the package, whatever lies between."""

import sys
import warnings
from pathlib import Path

HERE = str(Path(__file__).parent)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn` at the first frame outside of the package; at the outermost one where there is none."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
