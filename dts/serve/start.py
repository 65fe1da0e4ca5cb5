"""From options to an engine that is ready to work."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from dts.adapter import Adapter, AdapterError
from dts.checkpoint.errors import first_line
from dts.integrations.positions import positions
from dts.nn import DTSModel
from dts.nn.base import Base
from dts.serve.catalogue import Catalogue
from dts.serve.engine import Engine
from dts.serve.memory import default_limit
from dts.serve.observer import Observer
from dts.serve.options import Options
from dts.serve.refused import Refused
from dts.serve.texts import Texts
from dts.sizes import bytes_text

log = logging.getLogger("dts.serve")


@dataclass(frozen=True)
class Served:
    """All that answers requests.  options: with what was chosen where they left it open;  context: tokens that a
    sequence may have in all, of an encoder-decoder each of two;  vocabulary: tokens that the base knows;
    two_sequences: an answer is a sequence of its own."""

    options: Options
    engine: Engine
    catalogue: Catalogue
    texts: Texts
    context: int
    vocabulary: int
    two_sequences: bool = False


def serve(options: Options, observer: Observer | None = None) -> Served:
    """Loads the base, its tokenizer and the pinned tasks; the engine is to be started.

    Raises ValueError for a model that cannot be served; adapters that cannot be are named in the log.
    """
    begun = time.monotonic()
    tokenizer = _tokenizer(options.model, options.trusted)
    catalogue = _catalogue(options)
    device, more = options.place, dict[str, Any]()
    if catalogue.quantised:
        more["quantised_from"] = options.quantised_from
        if device.type != "cpu":  # what its library has quantised it does not move
            more["device_map"] = {"": device}
    if options.trusted:
        more["trust_remote_code"] = True
    # adapters only say which class to build
    model = DTSModel._of_base(options.model, _with_heads(options, catalogue), dtype=options.dtype, **more)
    if not catalogue.quantised:
        model.to(device)
    model._state.to(device)  # which layers would move with them, but there are none before the first task
    if model._base is not None:
        _ = model._base.fingerprint  # read now, not while the first task is loaded
    base: Any = model.model
    config = base.config
    many, size, took = base.num_parameters(), bytes_text(_bytes(base)), time.monotonic() - begun
    name = options.base_name
    log.info("%s: %s parameters, %s as %s on %s, in %.1f s", name, f"{many:,}", size, _dtype(base), device, took)
    if tokenizer is None and base.can_generate():
        raise ValueError(f"{options.model} has no tokenizer, and what it generates is to be text")
    pads = [getattr(tokenizer, "pad_token_id", None), getattr(config.get_text_config(), "pad_token_id", None)]
    pad = next((one for one in pads if one is not None), 0)
    texts = Texts(tokenizer, catalogue)
    mapped = model.watched_alone()
    if options.memory is None:
        to_come = _bytes(base) if mapped and device.type == "cpu" else 0
        options = replace(options, memory=default_limit(catalogue, options.pinned, device, to_come))
    engine = Engine(
        model,
        catalogue,
        options.batching,
        pad,
        memory=options.memory,
        pinned=options.pinned,
        pooling=options.pooling,
        observer=observer,
        mapped=mapped,
        eligible=lambda name: not texts.own(name),  # tokens are made before a task is chosen
    )
    longest = [positions(base), texts.base.longest]
    context = min([one for one in longest if one], default=1 << 20)
    tokens = base.get_input_embeddings().num_embeddings
    return Served(options, engine, catalogue, texts, context, tokens, config.is_encoder_decoder)


def _bytes(model: torch.nn.Module) -> int:
    """Of its weights, each once."""
    return sum(tensor.nbytes for tensor in {id(one): one for one in (*model.parameters(), *model.buffers())}.values())


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _catalogue(options: Options) -> Catalogue:
    """The adapters, and of which base they have to be."""
    base = Base(options.model, original=options.quantised_from)
    quantised = base.fingerprint is None
    known = base.original_fingerprint if quantised else base.fingerprint
    paths = [str(path) for path in (options.model, options.quantised_from) if path is not None]
    return Catalogue(options.adapters, options.base_name, known, quantised, paths)


def _tokenizer(model: str, trusted: bool) -> Any:
    """The model's, None if it has none."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(model, trust_remote_code=trusted)
    except (OSError, ValueError, ImportError) as error:  # the last, of a package that would read another kind of files
        why = first_line(error)
    else:
        if len(found) > len(set(found.all_special_ids)):
            return found
        why = "it knows no token but special ones"  # what transformers makes where there are no files of one
    log.warning("no tokenizer, so that callers must send token ids: %s", why)
    return None


def _with_heads(options: Options, catalogue: Catalogue) -> list[Adapter]:
    """A whole adapter for each class of model that tasks with heads of their own are of: one, or none can be loaded."""
    found: dict[str, Adapter] = {}
    for name in catalogue.names():
        try:
            about = catalogue.get(name)
            architecture = ((about.model_config or {}).get("architectures") or [""])[0]
            if about.brings_own and architecture not in found:
                assert about.folder is not None
                found[architecture] = Adapter.load(about.folder)
        except (Refused, AdapterError, OSError) as error:
            log.warning("the adapter %s will be refused: %s", name, error)
    return list(found.values())
