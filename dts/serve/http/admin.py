"""Loading and unloading by hand, for holders of an admin key; and what is in memory."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from dts.serve.http.asking import Asking
from dts.serve.http.bodies import Reading
from dts.serve.http.shapes import Load, LoadLora, Unload, UnloadLora
from dts.serve.refused import Refused


def routes(asking: Asking) -> APIRouter:
    """Functions without async: they wait for the engine in threads of their own."""
    router, engine = APIRouter(route_class=Reading), asking.served.engine

    def state() -> dict[str, Any]:
        residents = engine.residents
        return {
            "loaded": dict(list(residents.loaded.items())),
            "pinned": sorted(residents.pinned),
            "bytes": residents.nbytes,
            "memory": residents.memory,
            "running": engine.running,
            "waiting": len(engine.waiting),
        }

    @router.get("/admin/state")
    def get_state() -> Any:
        return state()

    @router.post("/admin/load")
    def load(asked: Load) -> Any:
        engine.load(asked.name, asked.path, asked.load_inplace, asked.pin)
        return state()

    @router.post("/admin/unload")
    def unload(asked: Unload) -> Any:
        engine.unload(asked.name)
        return state()

    @router.post("/v1/load_lora_adapter")
    def load_lora(asked: LoadLora) -> Any:
        if not asked.lora_path:
            raise Refused("lora_path is empty", param="lora_path")
        engine.load(asked.lora_name, asked.lora_path, asked.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter")
    def unload_lora(asked: UnloadLora) -> Any:
        engine.unload(asked.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    return router
