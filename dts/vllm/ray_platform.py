"""vLLM's own platform of CPUs with a name for Ray to count by, see `dts.vllm.ray_cpus`."""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform

from dts.vllm.ray_cpus import RESOURCE


class RayCpus(CpuPlatform):
    ray_device_key: str = RESOURCE
