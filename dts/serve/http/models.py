"""/v1/models: the base and every task."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from fastapi import APIRouter

from dts.serve.http.asking import Asking
from dts.serve.refused import Refused


def routes(asking: Asking) -> APIRouter:
    router, begun = APIRouter(), int(time.time())
    catalogue, context = asking.served.catalogue, asking.served.context

    def base() -> dict[str, Any]:
        about = {"object": "model", "created": begun, "owned_by": "dts"}
        return {
            "id": catalogue.base_name,
            **about,
            "root": catalogue.base_name,
            "parent": None,
            "max_model_len": context,
            "generates": asking.served.engine.generates,
        }

    def task(name: str) -> dict[str, Any]:
        """root: the folder it is in, of the folder of adapters;  bytes: on disk, None where it cannot be read."""
        root = catalogue.folder(name).relative_to(catalogue.root).as_posix()
        about = {"object": "model", "created": begun, "owned_by": "dts"}
        try:
            size = catalogue.get(name).nbytes
        except Refused:
            size = None
        loaded = name in asking.served.engine.residents.loaded
        about |= {"root": root, "parent": catalogue.base_name, "bytes": size, "loaded": loaded}
        return {"id": name, **about}

    @router.get("/v1/models")
    def models() -> Any:
        data = [base()]
        for name in catalogue.names():
            with suppress(Refused):  # its folder went since they were looked for
                data.append(task(name))
        return {"object": "list", "data": data}

    @router.get("/v1/models/{name}")
    def model(name: str) -> Any:
        return base() if name == catalogue.base_name else task(name)

    return router
