"""Triton kernels, one a file; Triton is imported when the first of them runs."""
