"""LangChain's embeddings by a sentence-transformers encoder, each store or retriever with a task of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dts.integrations.sentences import model_of, with_tasks
from dts.nn.selection import Selection

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise ImportError(
        "LangChain's interfaces are a package of its own: pip install langchain-core, and 'dts-merge[text]'"
    ) from error


class DTSEmbeddings(Embeddings):
    """``DTSEmbeddings(encoder, task="legal")``, wherever LangChain takes an `Embeddings`.

    encoder: a `SentenceTransformer` whose transformer is a `DTSModel`; many of these may share one
    task: of every text, a name, a mixture or dts.BASE; None is what is set in the model when a text comes
    options: further arguments of ``encode``, such as ``normalize_embeddings``
    Raises TypeError for another encoder, ValueError for tasks that it has not.
    """

    def __init__(self, encoder: Any, task: Selection = None, options: Mapping[str, Any] | None = None):
        self._encoder, self.task, self.options = with_tasks(encoder), task, dict(options or {})
        model_of(encoder)._loaded.mixture(task)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One embedding a text."""
        return self._encode("encode_document", list(texts)).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The embedding of one text, as a query where the encoder has prompts for queries."""
        return self._encode("encode_query", [text])[0].tolist()

    def _encode(self, method: str, texts: list[str]) -> Any:
        run = getattr(self._encoder, method, self._encoder.encode)
        return run(texts, tasks=self.task, show_progress_bar=False, **self.options)
