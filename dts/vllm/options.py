"""What the plugin is told, by the environment: vLLM's plugins have no other options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MODES, SAMPLES = ("lora", "packed"), ("refuse", "reencode")
LARGEST_RANK = 512  # of vLLM's own LoRA
CACHE = ".dts-vllm"  # in the folder of adapters: no task's name begins with a dot


@dataclass(frozen=True)
class Options:
    """adapters: folder of the tasks, None: the plugin resolves no names;  mode: how they run, one of ``MODES``;
    rank: the largest that a layer's LoRA may have;  samples: what becomes of a sketch's, one of ``SAMPLES``;
    cache: where LoRAs are kept that were made of adapters, None in mode "packed"."""

    adapters: Path | None = None
    mode: str = "lora"
    rank: int = LARGEST_RANK
    samples: str = "refuse"
    cache: Path | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Options:
        """Raises ValueError that says all that is wrong."""
        wrong = []
        given = {name: environment.get(f"DTS_VLLM_{name}", "") for name in ("MODE", "RANK", "SAMPLES", "CACHE")}
        adapters = Path(environment["DTS_VLLM_ADAPTERS"]) if environment.get("DTS_VLLM_ADAPTERS") else None
        mode, samples = given["MODE"] or "lora", given["SAMPLES"] or "refuse"
        if adapters is not None and not adapters.is_dir():
            wrong.append(f"DTS_VLLM_ADAPTERS={adapters} is no folder: it is where the tasks' adapters lie")
        if mode not in MODES:
            wrong.append(f"DTS_VLLM_MODE is {' or '.join(MODES)}, not {mode!r}")
        if samples not in SAMPLES:
            wrong.append(f"DTS_VLLM_SAMPLES is {' or '.join(SAMPLES)}, not {samples!r}")
        rank = int(given["RANK"] or LARGEST_RANK) if (given["RANK"] or "1").isdecimal() else 0
        if not 1 <= rank <= LARGEST_RANK:
            wrong.append(f"DTS_VLLM_RANK is 1 to {LARGEST_RANK}, which is vLLM's largest, not {given['RANK']!r}")
        unused = [name for name in ("RANK", "SAMPLES", "CACHE") if given[name] and mode == "packed"]
        wrong += [f"DTS_VLLM_{name} says how LoRAs are made, and DTS_VLLM_MODE=packed makes none" for name in unused]
        if adapters is None and mode == "lora":
            alone = [name for name, value in given.items() if value]
            wrong += [
                f"DTS_VLLM_{name} is of no use without DTS_VLLM_ADAPTERS, the folder of adapters" for name in alone
            ]
        if wrong:
            raise ValueError("the plugin dts of vLLM was told what cannot be: " + "; ".join(wrong))
        cache = Path(given["CACHE"]) if given["CACHE"] else None if adapters is None else adapters / CACHE
        return cls(adapters, mode, rank, samples, cache if mode == "lora" else None)
