"""Rounding real numbers to the values of 2-bit codes: 1, 4, -1, -4 (`dts_kernels.layout.VALUES`) times a scale."""

from dts_kernels.layout import VALUES

LARGEST = max(VALUES)
THRESHOLD = 2.5  # halfway between 1 and 4
RMS = 2.7  # of the codes that fit a normal distribution best, near enough for a start
KEPT = 0.8795  # of the energy of normal elements when rounded one by one at the best scale; the cosine's square
