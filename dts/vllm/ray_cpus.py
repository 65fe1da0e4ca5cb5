"""vLLM's Ray workers on CPUs: ``DTS_VLLM_RAY_CPUS=1``.

vLLM counts its Ray workers by a resource of Ray, has none for CPUs and ends with "current platform cpu does not support
ray".  Its engine runs there all the same once one is named.  That is GPU, as Ray tells workers the numbers of no other:
``ray start --num-gpus 2`` says that a machine takes two of vLLM's processes.
"""

from __future__ import annotations

import logging
import os

import vllm
from vllm import platforms

from dts.vllm import versions

log = logging.getLogger("vllm.dts")  # which vLLM prints
RESOURCE = "GPU"


def register() -> str | None:
    """The platform that vLLM takes instead of its own, found by the entry point ``dts`` of ``vllm.platform_plugins``.

    None, with a word in the log where it was asked for: on machines with devices that vLLM knows, and for versions that
    it was not made for.
    """
    if os.environ.get("DTS_VLLM_RAY_CPUS", "0") in ("", "0"):
        return None
    if not versions.known():
        why = f"was made for vLLM {versions.NAMES}, and this is {vllm.__version__}"
    elif platforms.cpu_platform_plugin() is None:
        why = "is for vLLM on CPUs, which this one is not"
    else:
        return "dts.vllm.ray_platform.RayCpus"
    log.warning("DTS_VLLM_RAY_CPUS=1 has no effect: it %s", why)
    return None
