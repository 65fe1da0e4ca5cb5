"""/v1/embeddings, and /classify in vLLM's shape."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any, Literal

import torch
from fastapi import APIRouter, Request, Response

from dts.adapter import Adapter
from dts.serve.choice import Choice
from dts.serve.http.answers import head, usage
from dts.serve.http.asking import Asking, Gone
from dts.serve.http.generation import GONE
from dts.serve.http.shapes import Classification, Embedding
from dts.serve.job import Value
from dts.serve.refused import Refused


def routes(asking: Asking) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def embeddings(asked: Embedding, request: Request) -> Any:
        if asked.encoding_format not in ("float", "base64"):
            raise Refused("encoding_format is float or base64", param="encoding_format")
        try:
            _, rows, values = await _answered(asking, "embed", asked, request)
        except Gone:
            return Response(status_code=GONE)
        write = _base64 if asked.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": i, "embedding": write(one)} for i, one in enumerate(values)]
        tokens = sum(map(len, rows))
        return {
            "object": "list",
            "data": data,
            "model": asked.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    @router.post("/classify")
    async def classify(asked: Classification, request: Request) -> Any:
        if asking.served.engine.generates:
            raise Refused("this model generates: it answers /v1/completions", code="not_a_classifier")
        try:
            choice, rows, values = await _answered(asking, "classify", asked, request)
        except Gone:
            return Response(status_code=GONE)
        adapters = [asking.served.catalogue.get(name) for name in choice.tasks]
        data = [_classified(index, logits, choice, adapters) for index, logits in enumerate(values)]
        about = head("classify", request.state.request_id, "list", asked.model)
        return about | {"data": data, "usage": usage(sum(map(len, rows))) | {"prompt_tokens_details": None}}

    return router


async def _answered(
    asking: Asking, kind: Literal["embed", "classify"], asked: Embedding | Classification, request: Request
) -> tuple[Choice, list[list[int]], list[list[float]]]:
    """(what was chosen, tokens of the inputs, the numbers of each); raises Gone where the client is."""
    choice, text = await asking.choice(asked.model)
    rows = await asking.prompts(text, asked.input)
    events = await asking.submit(request, kind, choice, rows, text).all()
    found = sorted((event for event in events if isinstance(event, Value)), key=lambda event: event.index)
    return choice, rows, [event.value for event in found]


def _base64(numbers: Sequence[float]) -> str:
    """float32, little endian."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _classified(index: int, logits: Sequence[float], choice: Choice, adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The probabilities of a row; of several labels at once, and of one alone, each is a sigmoid."""
    scores = torch.tensor(logits)
    kinds = {(adapter.model_config or {}).get("problem_type") for adapter in adapters}
    apart = len(logits) == 1 or kinds == {"multi_label_classification"}
    probs = scores.sigmoid() if apart else scores.softmax(0)
    names = labels(adapters, len(logits))
    return {
        "index": index,
        "label": names[int(probs.argmax())] if names else None,
        "probs": probs.tolist(),
        "num_classes": len(logits),
    }


def labels(adapters: Sequence[Adapter], classes: int) -> list[str] | None:
    """The names of classes that all of a choice's tasks agree on."""
    found = {tuple(_of(adapter, classes)) for adapter in adapters}
    return list(found.pop()) if len(found) == 1 and len(next(iter(found))) == classes else None


def _of(adapter: Adapter, classes: int) -> list[str]:
    if adapter.class_names:
        return adapter.class_names
    names = (adapter.model_config or {}).get("id2label") or {}
    return [str(names[key]) for key in sorted(names, key=int)] if all(str(key).isdigit() for key in names) else []
