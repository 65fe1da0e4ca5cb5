"""Adapters in vLLM: as LoRAs, as one merged model, or packed in its engine.

vLLM finds `dts.vllm.plugin` by the entry point ``dts`` of its group ``vllm.general_plugins``, and `dts.vllm.ray_cpus`
by that of ``vllm.platform_plugins``.  Only modules that vLLM's own processes load import vllm: `resolver`, `loader`,
`packed`, `ray_cpus`, `ray_platform`, `versions`.
"""
