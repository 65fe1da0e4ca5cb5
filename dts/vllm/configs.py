"""A fine-tune's config.json beside the one that vLLM runs the base with: what would compute something else."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from dts.sites.configs import OtherConfig, otherwise
from dts.warn import warn

log = logging.getLogger("vllm.dts")  # which vLLM prints

# what a config says about a file, a program or a training, and not about the model
HARMLESS = {
    "_name_or_path",
    "_attn_implementation",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "id2label",
    "label2id",
    "problem_type",
    "finetuning_task",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
    "attention_dropout",
    "hidden_dropout",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
}


def differences(finetuned: Mapping[str, Any] | None, base: Mapping[str, Any] | None, used: Any) -> dict[str, Any]:
    """Key -> the fine-tune's value, of what its config says otherwise than the base's and than the one in use.

    finetuned, base: as in config.json, None where there is none;  used: vLLM's ``hf_config``, with its overrides.
    """
    if not finetuned or not base:
        return {}
    missing = object()
    return {
        key: value
        for key, value in finetuned.items()
        if key not in HARMLESS
        and value != base.get(key, missing)
        and not (value is None and key not in base)
        and value != getattr(used, key, missing)
    }


def refuse_differences(
    name: str, finetuned: Mapping[str, Any] | None, base: Mapping[str, Any] | None, used: Any
) -> None:
    """Raises ValueError, with the option that makes vLLM use the fine-tune's values.

    Warns as `warn_otherwise` of what is seen only with the values that transformers has for what a config leaves out.
    """
    others = differences(finetuned, base, used)
    if others:
        was = ", ".join(f"{key} {json.dumps(value)}, not {getattr(used, key, None)!r}" for key, value in others.items())
        raise ValueError(
            f"the fine-tune of {name!r} has another config than vLLM runs its base with: {was}; start vLLM with "
            f"--hf-overrides '{json.dumps(others)}'"
        )
    if finetuned and base and otherwise(base, finetuned):  # by what one leaves out, as a default is
        warn_otherwise(name, finetuned, {key: getattr(used, key, base.get(key)) for key in {**base, **finetuned}})


def warn_otherwise(name: str, finetuned: Mapping[str, Any] | None, used: Mapping[str, Any] | None) -> None:
    """Warns (`OtherConfig`), also where vLLM prints, of a task that runs as its base computes and not as its fine-tune.

    used: the config that vLLM runs the base with.
    """
    if how := otherwise(used, finetuned):
        message = (
            f"task {name!r} is of a model that does not compute as this base: {how}.  vLLM runs it as the base, and "
            "its answers are not the fine-tune's: dts apply writes a model that is"
        )
        log.warning(message)
        warn(message, OtherConfig)
