"""The versions of vLLM that what reaches into it, where nothing is promised, was made for."""

from __future__ import annotations

import vllm

VERSIONS = ("0.32.0",)
NAMES = " and ".join(VERSIONS)


def known() -> bool:
    """Whether this vLLM is of one of them, for whatever device it was built."""
    return vllm.__version__.split("+")[0] in VERSIONS
