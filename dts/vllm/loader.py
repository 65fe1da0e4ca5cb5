"""``--load-format dts``: one task, merged into the base while it is loaded, a tensor at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from dts.adapter import Adapter
from dts.adapter.effects import Effects
from dts.checkpoint import open_checkpoint
from dts.vllm.configs import refuse_differences

FORMAT, OPTION = "dts", "adapter"


class Loader(DefaultModelLoader):
    """vLLM's own loader, given the tensors of base + adapter: in memory are the model and the tensor that is made.

    ``--model-loader-extra-config '{"adapter": "adapters/mood"}'`` says which; other keys are vLLM's.
    """

    def __init__(self, load_config: LoadConfig):
        extra: Any = load_config.model_loader_extra_config
        adapter = extra.get(OPTION) if isinstance(extra, dict) else None
        if not isinstance(adapter, str) or not adapter:
            raise ValueError(
                f"--load-format {FORMAT} needs the folder of an adapter: --model-loader-extra-config "
                f'\'{{"{OPTION}": "adapters/name"}}\''
            )
        rest = {key: value for key, value in extra.items() if key != OPTION}
        super().__init__(dataclasses.replace(load_config, model_loader_extra_config=rest))
        self.adapter = Path(adapter)

    def download_model(self, model_config: ModelConfig) -> None:
        """The base of a hub id is fetched when it is opened."""
        open_checkpoint(source(model_config))

    def get_all_weights(self, model_config: ModelConfig, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the reconstructed fine-tune, tied ones once.

        Raises AdapterError for a damaged adapter, Mismatch for another base, ValueError for another configuration, all
        before the first tensor; NoEffect after the last where nothing changed.
        """
        adapter, base = Adapter.load(self.adapter), open_checkpoint(source(model_config))
        refuse_differences(adapter.name, adapter.model_config, base.config, model_config.hf_config)
        finetuned, effects = adapter.on(base), Effects(adapter, base)
        self.counter_before_loading_weights = time.perf_counter()  # vLLM logs how long it took

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name in finetuned.names:
                if name not in finetuned.tied:
                    yield name, effects.see(name, finetuned.load(name))
                    finetuned.release(name)
            effects.check()

        return tensors()


def source(model_config: ModelConfig) -> str:
    """The base that vLLM runs, as `open_checkpoint` takes it."""
    revision = model_config.revision
    return f"{model_config.model}@{revision}" if revision else model_config.model


def register() -> None:
    """Makes the format known to vLLM."""
    register_model_loader(FORMAT)(Loader)
