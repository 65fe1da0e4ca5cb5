"""Adapters in vLLM: as LoRAs, or one of them merged.

vLLM finds `dts.vllm.plugin` by the entry point ``dts`` of its group ``vllm.general_plugins``.  Only modules that vLLM's
own processes load import vllm: `resolver`, `loader`.
"""
