"""Names of tasks in requests -> adapters of one folder, for vLLM's ``LoRAResolver``."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from dts.adapter import AdapterError
from dts.checkpoint import Checkpoint, Mismatch, open_checkpoint
from dts.checkpoint.fingerprint import fingerprint
from dts.exports import NotExact
from dts.serve.catalogue import Catalogue
from dts.serve.refused import Refused
from dts.vllm.configs import log, warn_otherwise
from dts.vllm.lora import cached
from dts.vllm.options import Options
from dts.vllm.places import place_of

NAME = "dts"


class Resolver(LoRAResolver):
    """Looks names up in the folder of adapters, and nowhere else: no name leads out of it, links followed.

    In mode "lora" the adapter becomes a LoRA once, in the cache; in mode "packed" it is loaded as it is.
    """

    def __init__(self, options: Options):
        assert options.adapters is not None
        self.options, self.root = options, options.adapters
        self._known: dict[str, tuple[Catalogue, Checkpoint]] = {}
        self._lock = threading.Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """None for an unknown name, which is vLLM's 404.  Raises an HTTP error, with the reason, for an adapter that
        cannot be used: of another base, damaged, or one that no LoRA stands for."""
        from fastapi import HTTPException

        try:
            path = await asyncio.to_thread(self.find, base_model_name, lora_name)
        except Refused as refused:
            if refused.status == 404:
                log.info("%s", refused)
                return None
            raise HTTPException(refused.status, str(refused)) from None
        return LoRARequest(lora_name, 1, path, base_model_name)  # vLLM gives it a number of its own

    def find(self, base: str, name: str) -> str:
        """The path that vLLM loads the task from.  Raises Refused."""
        catalogue, checkpoint = self._base(base)
        about, folder, digest = catalogue.get(name), catalogue.folder(name), catalogue.digest_of(name)
        if self.options.mode == "packed":
            return place_of(folder, digest)
        assert self.options.cache is not None
        warn_otherwise(name, about.model_config, checkpoint.config)
        try:
            return str(cached(folder, digest, base, self.options.cache, self.options.rank, self.options.samples))
        except (NotExact, Mismatch, ValueError) as error:
            if isinstance(error, AdapterError):
                raise catalogue.damaged(name, error) from None
            raise Refused(f"the adapter {name!r} cannot be a LoRA: {error}", 400, param="model") from None
        except OSError as error:
            raise catalogue.damaged(name, error) from None

    def _base(self, base: str) -> tuple[Catalogue, Checkpoint]:
        """The names, and the base that their adapters are of."""
        with self._lock:
            if base not in self._known:
                checkpoint = open_checkpoint(base)
                self._known[base] = Catalogue(self.root, Path(base).name, fingerprint(checkpoint)), checkpoint
            return self._known[base]


def register(options: Options) -> None:
    """Makes the names known to vLLM."""
    LoRAResolverRegistry.resolvers.pop(NAME, None)
    LoRAResolverRegistry.register_resolver(NAME, Resolver(options))
