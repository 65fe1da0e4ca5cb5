"""The models that are compared, one in memory at a time, and what kind of answers they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import dts
from dts.adapter.folder import CONFIG
from dts.adapter.tokenizer import VOCABULARY, has_tokenizer
from dts.checkpoint import Checkpoint, open_checkpoint
from dts.checkpoint.errors import first_line
from dts.checkpoint.part import only_part
from dts.integrations.transformers import class_and_config, config_of
from dts.sites.diffusers import class_name

TEXT, IMAGES, LANGUAGE = "text classification", "image classification", "language model"
ENDINGS = {
    "ForSequenceClassification": TEXT,
    "ForImageClassification": IMAGES,
    "ForCausalLM": LANGUAGE,
    "LMHeadModel": LANGUAGE,
}
WHOLE = ("ForConditionalGeneration", "ForImageTextToText")  # models of images and text, run on texts alone
AUTO = {
    TEXT: "AutoModelForSequenceClassification",
    IMAGES: "AutoModelForImageClassification",
    LANGUAGE: "AutoModelForCausalLM",
}
BASE = "base"


def opened(source: str, what: str) -> Checkpoint:
    """A checkpoint with a config, which transformers can build.  what: which model it is, for the error."""
    checkpoint = open_checkpoint(source)
    if checkpoint.folder is None or not checkpoint.config:
        raise ValueError(
            f"the {what}, {source}, has no config.json beside its weights: dts eval runs models that transformers can "
            "build, from a folder or hub id; dts verify compares weights alone"
        )
    if of_diffusers := class_name(checkpoint.config):
        raise ValueError(
            f"the {what}, {source}, is {of_diffusers} of diffusers, which answers with no classes or tokens: in Python "
            "dts.DTSModel.from_pretrained(base, adapters) runs it; dts verify compares weights alone"
        )
    return checkpoint


def kind_of(checkpoint: Checkpoint, part: str | None = None) -> str:
    """What a model answers, by its architecture; part: it may be a whole of which this part is compared.

    Raises ValueError for what cannot be compared here.
    """
    config = checkpoint.config or {}
    architecture = (config.get("architectures") or ["none"])[0]
    where = f"{checkpoint.source}: its config.json names the architecture {architecture}"
    kind = next((kind for ending, kind in ENDINGS.items() if architecture.endswith(ending)), None)
    if kind is None and part is not None and architecture.endswith(WHOLE):
        kind = LANGUAGE  # of texts alone
    if kind is None:
        raise ValueError(
            f"{where}; dts eval compares {', '.join('*' + ending for ending in ENDINGS)}: give a fine-tune with its "
            "head, say --only language_model of one of images and text, or compare weights by dts verify"
        )
    problem = config.get("problem_type")
    if kind is not LANGUAGE and problem in ("regression", "multi_label_classification"):
        raise ValueError(f"{where} for {problem}; dts eval compares models that answer with one class of several")
    return kind


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and news of heads that are new, which come between our own lines."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_part(base: Checkpoint, finetuned: Checkpoint, part: str | None) -> None:
    """Raises ValueError, or CheckpointError, where neither is that part of the other."""
    if part is not None:
        only_part(base, finetuned, part)


def finetuned_model(checkpoint: Checkpoint, kind: str, dtype: torch.dtype, device: str, trusted: bool = False) -> Any:
    """The fine-tune as transformers builds it, in eval mode; trusted: code of its own may run."""
    import transformers

    config = checkpoint.config or {}
    cls = getattr(transformers, config["architectures"][0], None)
    options: dict[str, Any] = {}
    if cls is None and "auto_map" in config:
        assert checkpoint.folder is not None  # `opened` has it
        cls, options["config"] = class_and_config(checkpoint.folder, [], {"trust_remote_code": trusted})
        options["trust_remote_code"] = trusted
    cls = cls or getattr(transformers, AUTO[kind])
    with quiet():
        return cls.from_pretrained(checkpoint.folder, dtype=dtype, **options).eval().to(device)


def without_head(checkpoint: Checkpoint, device: str, trusted: bool = False) -> Any:
    """A base as transformers builds it, in eval mode; one with code of its own that names no class without a head as
    its config has it.  trusted: that code may run."""
    import transformers

    assert checkpoint.folder is not None  # `opened` has it
    cls, config = transformers.AutoModel, config_of(checkpoint.folder, trusted, {})
    options = {"config": config, "trust_remote_code": trusted}
    if "AutoModel" not in (getattr(config, "auto_map", None) or {"AutoModel"}):
        cls, _ = class_and_config(checkpoint.folder, [], options)
    with quiet():
        return cls.from_pretrained(checkpoint.folder, **options).eval().to(device)


def served(
    base: Checkpoint, adapters: list[dts.Adapter], dtype: torch.dtype, device: str, trusted: bool = False
) -> dts.DTSModel:
    """The base under the first adapter's head, which is loaded as task ``BASE`` where the base has none."""
    head = {name: entry for name, entry in adapters[0].entries.items() if entry.task_only}
    first = {BASE: dataclasses.replace(adapters[0], entries=head)} if head else {}
    with quiet():
        model = dts.DTSModel.from_pretrained(
            str(base.folder), adapters=first, dtype=dtype, trust_remote_code=trusted or None
        )
        return model.to(device)


def _may_run(place: str | Path, trusted: bool) -> bool:
    """Whether code that these files name may run: never an adapter's, which has none of its own and may name any."""
    return trusted and not (Path(place) / CONFIG).exists()


def image_processor_of(*places: Any, trusted: bool = False) -> Any:
    """That of the first place that is given."""
    from transformers import AutoImageProcessor

    place = next(filter(None, places))
    return AutoImageProcessor.from_pretrained(place, trust_remote_code=_may_run(place, trusted))


def tokenizer_of(*places: Any, trusted: bool = False) -> Any:
    """The first that there is.  Raises ValueError that says where it was looked for."""
    from transformers import AutoTokenizer

    reasons = []
    for place in filter(None, places):
        if Path(place).is_dir() and not has_tokenizer(Path(place)):
            reasons.append(f"{place}: no {' or '.join(VOCABULARY)}")
            continue
        try:
            return AutoTokenizer.from_pretrained(place, trust_remote_code=_may_run(place, trusted))
        except (OSError, ValueError, KeyError, ImportError) as error:
            reasons.append(f"{place}: {first_line(error)}")
    raise ValueError(
        f"there is no tokenizer for the texts ({'; '.join(reasons)}): say which by --tokenizer, or give token ids in a "
        "column input_ids of a .jsonl file"
    )
