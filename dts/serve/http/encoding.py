"""/v1/embeddings, and /classify and /rerank in vLLM's shapes."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence
from typing import Any, Literal

import torch
from fastapi import APIRouter, Request

from dts.adapter import Adapter
from dts.serve.choice import Choice
from dts.serve.http.answers import answered_by, head, task_of, usage
from dts.serve.http.asking import Asking
from dts.serve.http.bodies import Reading
from dts.serve.http.shapes import Asked, Classification, Embedding, Reranking
from dts.serve.job import Job, Row, Value
from dts.serve.refused import Refused
from dts.serve.texts import Text


def routes(asking: Asking) -> APIRouter:
    router = APIRouter(route_class=Reading)

    @router.post("/v1/embeddings")
    async def embeddings(asked: Embedding, request: Request) -> Any:
        if asked.encoding_format not in ("float", "base64"):
            raise Refused("encoding_format is float or base64", param="encoding_format")
        job, values = await _answered(asking, "embed", asked, request)
        write = _base64 if asked.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": i, "embedding": write(one)} for i, one in enumerate(values)]
        tokens = _tokens(job)
        return {
            "object": "list",
            "data": data,
            "model": answered_by(job),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    @router.post("/classify")
    async def classify(asked: Classification, request: Request) -> Any:
        _refuse_generators(asking)
        job, values = await _answered(asking, "classify", asked, request)
        data = [_classified(row, logits) | task_of(row) for row, logits in zip(job.rows, values)]
        about = head("classify", request.state.request_id, "list", answered_by(job))
        return about | {"data": data, "usage": usage(_tokens(job)) | {"prompt_tokens_details": None}}

    @router.post("/rerank")
    @router.post("/v1/rerank")
    @router.post("/v2/rerank")
    async def rerank(asked: Reranking, request: Request) -> Any:
        """Documents by how a cross-encoder's one class, a sigmoid, stands to each of them with the query."""
        _refuse_generators(asking)
        choice, text = await asking.choice(asked.model)
        documents = [one.text for one in asked.documents]
        asking.refuse_rows(len(documents), "documents")
        if not asked.query or not all(documents):
            empty = "documents" if asked.query else "query"
            raise Refused("the query or a document is empty", param=empty)
        pairs = [await asyncio.to_thread(text.pair, asked.query, one) for one in documents]
        rows, types = [ids for ids, _ in pairs], [kinds for _, kinds in pairs]
        asking.check(text, rows)
        job, values = await _values(asking, request, asked, choice, text, "classify", rows, types)
        if wide := next((len(value) for value in values if len(value) != 1), 0):
            raise Refused(f"{asked.model!r} has {wide} classes: reranking is for tasks of one", 400, "not_a_reranker")
        scores = torch.tensor(values)[:, 0].sigmoid().tolist()
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n or len(scores)]
        told = lambda index: {"document": {"text": documents[index]}} if asked.return_documents else {}  # noqa: E731
        found = [
            {"index": index, **told(index), "relevance_score": scores[index]} | task_of(job.rows[index])
            for index in best
        ]
        about = {"id": f"rerank-{request.state.request_id}", "model": answered_by(job)}
        return about | {"usage": {"total_tokens": _tokens(job)}, "results": found}

    return router


def _refuse_generators(asking: Asking) -> None:
    if asking.served.engine.generates:
        raise Refused("this model generates: it answers /v1/completions", code="not_a_classifier")


async def _answered(
    asking: Asking, kind: Literal["embed", "classify"], asked: Embedding | Classification, request: Request
) -> tuple[Job, list[list[float]]]:
    """(the job, the numbers of each of its rows); raises Gone where the client is."""
    choice, text = await asking.choice(asked.model)
    rows = await asking.prompts(text, asked.input)
    return await _values(asking, request, asked, choice, text, kind, rows)


async def _values(
    asking: Asking,
    request: Request,
    asked: Asked,
    choice: Choice,
    text: Text,
    kind: Literal["embed", "classify"],
    rows: Sequence[Sequence[int]],
    types: Sequence[Sequence[int] | None] | None = None,
) -> tuple[Job, list[list[float]]]:
    watched = asking.submit(request, kind, choice, rows, text, types=types, priority=asked.priority)
    found = [event for event in await watched.all() if isinstance(event, Value)]
    return watched.job, [event.value for event in sorted(found, key=lambda event: event.index)]


def _tokens(job: Job) -> int:
    return sum(len(row.ids) for row in job.rows)


def _base64(numbers: Sequence[float]) -> str:
    """float32, little endian."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _classified(row: Row, logits: Sequence[float]) -> dict[str, Any]:
    """The probabilities of a row; of several labels at once, and of one alone, each is a sigmoid."""
    scores = torch.tensor(logits)
    kinds = {(adapter.model_config or {}).get("problem_type") for adapter in row.adapters}
    apart = len(logits) == 1 or kinds == {"multi_label_classification"}
    probs = scores.sigmoid() if apart else scores.softmax(0)
    names = labels(row.adapters, len(logits))
    return {
        "index": row.index,
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
