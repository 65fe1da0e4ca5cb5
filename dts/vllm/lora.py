"""An adapter as a LoRA that vLLM loads: PEFT's format, less what vLLM has no place for.

B A is the difference exactly where it is components of a rank that vLLM takes.  vLLM's LoRAs have no norms, no biases
and no modules kept whole: vectors are left out, by name, with what that is in the error; a matrix that would be left
out is refused.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dts.adapter import Adapter
from dts.adapter.card import markdown
from dts.adapter.digests import config_digest
from dts.checkpoint.errors import some
from dts.exports import NotExact
from dts.exports.fitted import Fitted, opened
from dts.exports.lora import Writer, is_peft, write_folder
from dts.exports.places import Places, places
from dts.exports.report import Export
from dts.files.lock import Busy
from dts.vllm.options import LARGEST_RANK

log = logging.getLogger("vllm.dts")  # which vLLM prints
VERSION = 1  # of what is made of an adapter: another one is another folder
KINDS = ("linear", "embedding")  # of layers that vLLM's LoRA acts on
NO_PLACE = "vLLM's LoRA acts on the weights of linear layers and embeddings alone, so it stays the base's"
PACKED = "run the adapter from its packed bits (DTS_VLLM_MODE=packed), or alone and merged (--load-format dts)"


def write_lora(
    adapter: Adapter | str | Path,
    base: Any,
    out: str | Path,
    rank: int = LARGEST_RANK,
    samples: str = "refuse",
) -> Export:
    """Writes a folder that vLLM loads as a LoRA of the base; its README.md has the error and what is left out.

    adapter: or its folder;  base: anything `open_checkpoint` takes;  rank: the largest of any layer, above which it is
    cut to its best approximation;  samples: "refuse" a sketch, or "reencode" each layer as the best LoRA of that rank.
    Raises NotExact for samples that are refused and for matrices without a place, Mismatch for another base.
    """
    (fit, watch), out = opened(adapter, base, rank, None), Path(out)
    writer = Writer(fit, _places(fit), rank, torch.float32)
    sampled = writer.sampled()
    if sampled and samples != "reencode":
        raise NotExact(
            f"the adapter {fit.adapter.name!r} has samples in {len(sampled)} layers ({some(sampled, 3)}), which are no "
            f"low rank, so that no LoRA is exact: {PACKED}; or DTS_VLLM_SAMPLES=reencode makes of each layer the best "
            f"LoRA of rank {rank}, with the error stated"
        )
    matrices = [name for name in writer.places.lost if len(_shape(fit, name)) > 1]
    if matrices:
        raise NotExact(
            f"the adapter {fit.adapter.name!r} changes {len(matrices)} matrices that no LoRA of vLLM is for "
            f"({some(matrices, 3)}): {PACKED}"
        )
    return write_folder(writer, watch, out, partial(_card, fit.adapter))


def _shape(fit: Fitted, name: str) -> tuple[int, ...]:
    """Of a parameter of the model, or of an entry that has no place in it."""
    return fit.sites[name].shape if name in fit.sites else fit.adapter.entries[name].shape


def _places(fit: Fitted) -> Places:
    """PEFT's places that vLLM has too; all else that changed is lost."""
    of_peft = places(fit)
    found = Places({name: kind for name, kind in of_peft.lora.items() if kind in KINDS}, lost=dict(of_peft.lost))
    for name in fit.changed():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or module not in found.lora:
            found.lost.setdefault(name, NO_PLACE)
    return found


def _card(adapter: Adapter, result: Export) -> str:
    """README.md of the folder."""
    lines = [f"# {markdown(adapter.name)}", "", f"For vLLM.  {markdown(in_words(result))}", ""]
    lines += [f"- left out: {markdown(one.name)}: {one.why}" for one in result.left_out]
    return "\n".join(lines) + "\n"


def in_words(result: Export) -> str:
    """What a LoRA is of its adapter, in a line."""
    ranks = [one.rank for one in result.parameters if one.how == "lora"]
    left = [one.name for one in result.left_out]
    words = f"{len(ranks)} layers of rank {min(ranks, default=0)} to {max(ranks, default=0)}"
    words += f"; {len(left)} vectors are left out and stay the base's: {some(left, 4)}" if left else ""
    return f"{words}; squared relative error {result.squared_error:.3g}"


def cached(folder: Path, digest: str, base: Any, cache: Path, rank: int, samples: str, wait: float = 600.0) -> Path:
    """The folder of an adapter's LoRA in the cache, written where it is not there.

    folder: of the adapter;  digest: of its whole configuration (`config_digest`).  Another adapter of that name,
    another rank and another choice are other folders.  wait: seconds for another process that writes the same one.
    """
    own = config_digest({"adapter": digest, "rank": rank, "samples": samples, "made": VERSION})
    out, until = cache / f"{folder.name}-{own}", time.monotonic() + wait
    while not is_peft(out):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            result = write_lora(Adapter.load(folder), base, out, rank, samples)
        except Busy:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        except OSError as error:
            if isinstance(error, FileExistsError) and is_peft(out):
                continue  # another process was faster
            raise OSError(f"{error} (DTS_VLLM_CACHE says another place for LoRAs made of adapters)") from error
        else:
            say = log.warning if result.squared_error > 0 else log.info
            say("the adapter %s as a LoRA: %s", folder.name, in_words(result))
    return out
